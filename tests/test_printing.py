"""Results as JSON that any reader takes, and as text that lines up."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from barlowtwins.cli import main
from barlowtwins.core.printing import data_size, escape_controls, plain, plural, render, table
from barlowtwins.core.progress import say
from barlowtwins.reports.pages import text
from barlowtwins.zoo.export import ExportResult


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    accuracy: float
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    rows: tuple[Row, ...]
    n_train: int = 60_000
    seconds: float = 1234.5678
    done: bool = True
    accuracy: dict[int, float] = dataclasses.field(default_factory=lambda: {20: 85.712, 200: 83.0})


class Pair(NamedTuple):
    a: int
    b: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (-math.inf, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (torch.tensor([1, 2]), [1, 2]),
        (Path("a") / "b", str(Path("a") / "b")),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Pair(1, math.nan), {"a": 1, "b": None}),
        (Row("x", 1.5), {"name": "x", "accuracy": 1.5, "note": None}),
        (b"ab", "b'ab'"),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_a_result_says_itself_how_it_is_recorded_and_how_it_reads() -> None:
    class Own:
        def to_dict(self) -> dict[str, Any]:
            return {"loss": math.nan}

        def summary(self) -> str:
            return "all is well"

    assert plain(Own()) == {"loss": None}
    assert render(Own()) == "all is well"


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(_leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_whatever_is_plain_goes_through_json_and_can_be_shown(value: Any) -> None:
    again = json.loads(json.dumps(plain(value), allow_nan=False))
    assert again == plain(value)
    assert isinstance(render(value), str)


def test_render_a_result() -> None:
    shown = render(Result(rows=(Row("pixels", 85.712345), Row("trained", 90.0, "best"))))
    assert shown.splitlines() == [
        "n train   60000",
        "seconds   1,234.6",
        "done      yes",
        "accuracy  20: 85.71, 200: 83",
        "",
        "rows:",
        "name     accuracy  note",
        "pixels   85.71     -",
        "trained  90        best",
    ]


def test_render_a_result_that_is_one_table_or_that_found_nothing() -> None:
    assert render({"rows": [Row("a", 1.0)]}).splitlines() == ["name  accuracy  note", "a     1         -"]
    assert render({"n": 2, "bad": []}).splitlines() == ["n    2", "bad  none"]


def test_render_a_long_list_says_what_is_left_out() -> None:
    shown = render([Row(str(i), i) for i in range(1000)]).splitlines()
    assert len(shown) == 22
    assert shown[-1].startswith("... and 980 more")


def test_render_what_has_no_fields() -> None:
    assert [render(value) for value in ("text", 3, [], None)] == ["text", "3", "[]", "None"]


def test_table_lines_up() -> None:
    assert table([["a", "bbb"], ["cc", ""]], ["x", "y"]).splitlines() == ["x   y", "a   bbb", "cc"]
    assert table([]) == ""


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (0, ("step",), "0 steps"),
        (1, ("step",), "1 step"),
        (12_345, ("image",), "12,345 images"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
    ],
)
def test_plural(count: int, noun: tuple[str, ...], expected: str) -> None:
    assert plural(count, *noun) == expected


def test_amounts_of_data_have_a_unit_in_which_they_are_not_zero() -> None:
    sizes = [data_size(count) for count in (0, 999, 1000, 45_678, 1_000_000, 23.45e9)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "45.7 kB", "1.0 MB", "23.4 GB"]


def test_what_there_is_nothing_of_has_no_line() -> None:
    assert render({"format": "timm", "features": None, "notes": []}).splitlines() == ["format  timm", "notes   none"]
    assert "-" in render([Row("a", 1.0)])  # but a table has every column
    exported = ExportResult(Path("w.pth"), "torchvision", "ab" * 32, "resnet18", "(N, 3, 8, 8)", None, None)
    names = ["out", "format", "sha256", "backbone", "input"]
    assert [line.split()[0] for line in render(exported).splitlines()] == names


@pytest.mark.parametrize(
    "sent", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\x00b", "\x7f", "\u202eexe.gnp", "\u2066", "a\rb"]
)
def test_a_terminal_is_never_sent_what_it_would_obey(sent: str, capsys: pytest.CaptureFixture[str]) -> None:
    escaped = escape_controls(f"ok {sent}\t\n")
    assert sent not in escaped and escaped.startswith("ok ") and escaped.endswith("\t\n")
    say(f"cannot read {sent}")
    assert main(["check", f"no such {sent}"]) == 1
    said = capsys.readouterr().err
    assert sent not in said and "cannot read" in said and "no such" in said
    assert sent not in text(sent)  # of a page


def test_names_in_any_alphabet_stay_as_they_are() -> None:
    assert escape_controls("naïve 猫 кот\n\tقطة") == "naïve 猫 кот\n\tقطة"
