"""Fixtures that several test files share, what a usual run leaves out, and error coverage (see error_coverage.py)."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, open_browser
from error_coverage import NOTES, note_raises, unreached
from servers import Server

# Some virtual machines announce AMX and refuse it: oneDNN would end the process with SIGILL. Read at its first use.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="also run what takes many minutes (make faults does)")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if NOTES not in os.environ:  # else this is a worker of xdist, and the folder is there already
        os.environ[NOTES] = folder = tempfile.mkdtemp(prefix="barlowtwins-raises-")
        os.chmod(folder, 0o777)  # some tests are nobody for a while
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(NOTES), ignore_errors=True))
        noting = str(Path(__file__).parent / "noting")  # for the processes that tests start
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [noting, os.environ.get("PYTHONPATH")]))
    note_raises()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _is_full(config: pytest.Config) -> bool:
    """Whether nothing was chosen on the command line: all tests ran."""
    chosen = config.getoption("keyword") or config.getoption("markexpr") or config.getoption("collectonly")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A full run in which some error of the package was never made has failed."""
    if hasattr(session.config, "workerinput") or exitstatus != 0:  # a worker of xdist has run a part of the tests
        return
    if _is_full(session.config) and unreached(Path(os.environ[NOTES])):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _is_full(config):
        left = unreached(Path(os.environ[NOTES]))
        if left:
            terminalreporter.section(f"{len(left)} errors that no test reached")
            for place in left:
                terminalreporter.write_line(f"barlowtwins/{place}")
