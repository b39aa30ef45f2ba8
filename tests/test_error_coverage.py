"""The errors of the package: the form of their messages, and those that no test of a module brings about.

That each is reached by some test is seen at the end of a full run (see error_coverage.py and conftest.py).
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from error_coverage import ELSEWHERE, NOTES, PACKAGE, noted_lines, places, unreached

import barlowtwins
from barlowtwins.core import errors
from barlowtwins.core.errors import ConfigError

# The form of a message: what was found, where, and what to do ---------------------------------------------------------

EVERY = places()
WRAPPED = re.compile(r"^(its|it) |^\{\}$|^\{\}\{\}$|^\{\}: \{\}$")
"""Half a sentence that another message of the same file completes, or words that were put together before."""


def test_places_are_found() -> None:
    assert len(EVERY) > 250
    named = {place.file for place in EVERY}
    assert {"train/pretrain.py", "zoo/safe_load.py", "evaluate/semi.py", "train/recipes/__init__.py"} <= named


def test_a_message_is_one_line_that_begins_small_and_has_no_full_stop() -> None:
    for place in EVERY:
        if place.kind == "MissingExtraError":
            continue  # it makes its own
        assert "\n" not in place.message, place
        assert place.message == place.message.strip(), place
        assert not place.message.endswith((".", "!")) or place.message.endswith("..."), place
        first = place.message.split()[0]
        assert not (first[0].isupper() and first[1:].islower()), place  # names such as LARS may begin with a capital


def test_a_message_says_what_was_found_or_where() -> None:
    """Something is filled in: the value, the file, the numbers."""
    plain = [place.message for place in EVERY if "{}" not in place.message and place.kind != "MissingExtraError"]
    left = {message for message in plain if not WRAPPED.search(message) and ";" not in message}
    assert left <= {"a classifier needs readable images of two classes or more"}


WAY_OUT = re.compile(
    r";|\?|--|\b(must|try|choose|use|give|pass|see|put|leave|needs?|instead|did you mean|the same command)\b"
    r"|: refused|Without a connection|only .* (is|are) understood"
)
"""Something to do: a second part, a flag, a question, or a verb."""
COMPLETED = {
    "recipe {}: {}": "by an error of the settings",
    "{} cannot be opened: {}{}": "by the package that is missing",
    "the entry of {} is not understood: {}": "by the error of the whole file, as are the next three",
    "{} has shape {} and offsets {}, which cannot be": "",
    "{} has {} bytes, which do not hold {} numbers of {}": "",
    "{} (bytes {} to {}) {} {}": "",
}
"""Messages that another one completes, and which."""


def test_a_message_says_what_to_do() -> None:
    silent = {
        place.message
        for place in EVERY
        if place.kind != "MissingExtraError" and not WAY_OUT.search(place.message) and not WRAPPED.search(place.message)
    }
    assert silent <= set(COMPLETED)


def test_every_exception_that_is_raised_is_ours() -> None:
    """Or one that Python's protocols ask for, or one that never leaves its module."""
    protocols = {
        "IndexError",
        "AttributeError",
        "KeyboardInterrupt",
        "NotImplementedError",
        "StopIteration",
        "TypeError",
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                name = node.exc.func.id
                if isinstance(getattr(builtins, name, None), type) and name not in protocols:
                    caught = re.search(rf"except [^\n]*\b{name}\b", source) or (path.name, name) in CAUGHT
                    assert caught, f"{path}:{node.lineno} raises {name}"


CAUGHT = {("images.py", "OSError")}
"""By `except _DECODING_ERRORS`, which has it."""


# The look at the end of a full run ------------------------------------------------------------------------------------


def test_a_place_that_was_reached_is_noted() -> None:
    with pytest.raises(ConfigError):
        barlowtwins.BarlowTwins("resnet19")
    place = next(place for place in EVERY if place.message.startswith("unknown backbone"))
    notes = Path(os.environ[NOTES])
    assert {f"{place.file}:{line}" for line in range(place.first, place.last + 1)} & noted_lines(notes)
    assert place not in unreached(notes)


def test_places_that_were_not_reached_are_told(tmp_path: Path) -> None:
    assert [place for place in unreached(tmp_path) if place.message in ELSEWHERE] == []
    assert len(unreached(tmp_path)) == len(EVERY) - sum(place.message in ELSEWHERE for place in EVERY)
    place = next(place for place in EVERY if place.file == "metrics/knn.py")
    (tmp_path / f"metrics+knn.py:{place.last}").touch()
    assert place not in unreached(tmp_path)


def test_exceptions_to_the_rule_are_still_there() -> None:
    assert set(ELSEWHERE) <= {place.message for place in EVERY}


def test_all_kinds_are_known() -> None:
    assert {place.kind for place in EVERY} <= set(errors.__all__)


@pytest.mark.parametrize(
    ("arguments", "code", "lists"),
    [([], 1, True), (["-n", "2"], 1, True), (["-k", "here"], 0, False)],
)
def test_a_full_run_that_reaches_too_little_lists_it_and_fails(
    tmp_path: Path, arguments: list[str], code: int, lists: bool
) -> None:
    """A run of one test, which reaches next to nothing, with the conftest of all; with and without worker processes."""
    here = Path(__file__).parent
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "error_coverage.py", "servers.py", "browser.py"):
        shutil.copy(here / name, tmp_path / "tests")
    shutil.copytree(here / "noting", tmp_path / "tests" / "noting")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import subprocess, sys\n"
        "from barlowtwins.cli import main\n"
        "def test_here(): assert main([]) == 2\n"
        "def test_in_a_process(): assert subprocess.call([sys.executable, '-m', 'barlowtwins', 'pretrian']) == 2\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != NOTES}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("barlowtwins/")]
    if not lists:
        assert told == []
        return
    assert f"{len(told)} errors that no test reached" in done.stdout
    assert len(told) == len(EVERY) - len(ELSEWHERE) - 2
    assert not any("a command is missing" in line or "did you mean" in line for line in told)
