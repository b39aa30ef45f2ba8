"""Each row of the matrix has a test that is named after it."""

from __future__ import annotations

import ast
from pathlib import Path

from matrix import ROWS, rows_of


def functions() -> list[str]:
    """All test functions of this folder."""
    return [
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_every_row_has_a_test() -> None:
    assert list(ROWS) == sorted(ROWS)
    assert set(range(1, 60)) <= set(ROWS)  # later ones join with their tests
    covered = {row for name in functions() for row in rows_of(name)}
    assert covered == set(ROWS)


def test_rows_are_read_from_names() -> None:
    assert rows_of("test_07_plain_http") == (7,)
    assert rows_of("test_39_44_kills") == (39, 44)
    assert rows_of("test_an_interrupt_leaves_nothing") == ()
