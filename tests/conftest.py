"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, open_browser
from servers import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on loopback that answers as it is told."""
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests of a process; they skip, with the reason, where there is none."""
    opened = open_browser()
    yield opened
    opened.driver.quit()
