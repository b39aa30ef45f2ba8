"""Which of the places that make an error of this package were reached by some test.

A place is a call of an error class of `barlowtwins.core.errors` in the package's source. Each process notes the lines
that make errors, as the names of empty files in one folder. At the end of a full run, places without a note are listed
and fail the run. Processes that tests start take notes, too: the folder `noting` is on their PYTHONPATH. Isolated ones
do not, nor does one that is killed while it makes the error.

Why not `coverage` with `patch = subprocess`: in 216 tests it reached the same places, but took half as much CPU time
again (96 s instead of 63 s), and a process that is killed after its error loses all of its data, while a note stays.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import barlowtwins
from barlowtwins.core import errors

__all__ = ["ELSEWHERE", "NOTES", "Place", "note_raises", "noted_lines", "places", "unreached"]

PACKAGE = Path(barlowtwins.__file__).parent
NOTES = "BARLOWTWINS_TEST_RAISES"
"""Environment variable: the folder in which processes make an empty file for each line."""

ELSEWHERE = {
    "process {} of this machine has no GPU; there are {}: --nproc-per-node={}": "needs GPUs",
    "no weights/registry.json beside or inside {}; install the package again": "needs a broken installation",
}
"""Messages that no test on every machine can bring about, and why."""


@dataclass(frozen=True)
class Place:
    """A call that makes an error."""

    file: str
    """Relative to the package, with forward slashes."""
    first: int
    last: int
    """Lines."""
    kind: str
    """The class."""
    message: str
    """The text, with {} for what is filled in; empty if it is made elsewhere."""

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.kind}: {self.message}"


@functools.cache
def places() -> list[Place]:
    """All places of the package, by file and line."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__:
                file = path.relative_to(PACKAGE).as_posix()
                message = "".join(map(_text, node.args[:1]))
                found.append(Place(file, node.lineno, node.end_lineno or node.lineno, node.func.id, message))
    return sorted(found, key=lambda place: (place.file, place.first))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "{}"


def note_raises() -> None:
    """From now on this process, and those that it forks, note where errors are made."""
    noted: set[str] = set()
    folder = os.environ.get(NOTES)
    if folder is None or not os.path.isdir(folder):  # a process that was not started by a test, or outlives it
        return
    package, skipped = str(PACKAGE) + os.sep, (__file__, str(errors.__file__))

    def noting(self: errors.BarlowTwinsError, *args: object) -> None:
        super(errors.BarlowTwinsError, self).__init__(*args)
        frame = sys._getframe(1)
        while frame.f_code.co_filename in skipped and frame.f_back is not None:
            frame = frame.f_back
        file = frame.f_code.co_filename
        line = f"{file.removeprefix(package).replace(os.sep, '/')}:{frame.f_lineno}"
        if file.startswith(package) and line not in noted:
            noted.add(line)  # and a file of no size, which no limit that a test has set forbids
            with contextlib.suppress(OSError):  # of a process that outlives the tests
                os.close(os.open(os.path.join(folder, line.replace("/", "+")), os.O_CREAT | os.O_WRONLY))

    errors.BarlowTwinsError.__init__ = noting  # type: ignore[method-assign,assignment]


def noted_lines(notes: Path) -> set[str]:
    """Such as "evaluate/knn.py:60"."""
    return {path.name.replace("+", "/") for path in notes.iterdir()}


def unreached(notes: Path) -> list[Place]:
    """The places that the notes do not mention, apart from those of `ELSEWHERE`."""
    reached = noted_lines(notes)
    return [
        place
        for place in places()
        if place.message not in ELSEWHERE
        and not any(f"{place.file}:{line}" in reached for line in range(place.first, place.last + 1))
    ]
