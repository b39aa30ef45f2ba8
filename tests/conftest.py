"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on loopback that answers as it is told."""
    with Server() as running:
        yield running
