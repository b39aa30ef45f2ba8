"""A command's result, for a person and for a program.

A result is a dataclass. It may define `summary() -> str` to say itself how it reads, `to_dict()` to say what a program
gets; without them both are made of its fields.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["data_size", "plain", "plural", "render", "table"]

LONGEST_LIST = 20  # rows of a list that a person is shown; a program gets all of them


def plural(count: int, noun: str, many: str = "") -> str:
    """How many there are, such as "1 step" or "1,200 steps"; `many` is a plural that is not made by an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def data_size(count: float) -> str:
    """An amount of bytes, such as "94.0 MB"; kilo is a thousand."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f} B"


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dict, list, str, int, float, bool, None.

    NaN and infinity become null, paths their text, arrays and tensors lists.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):  # a named tuple
        return plain(value._asdict())
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return plain(value.tolist())
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, os.PathLike)):
        return [plain(item) for item in value]
    return str(value)


def render(result: Any) -> str:
    """How a person reads `result`: its own `summary()`, else a line a field and a table for a list of records.

    Fields that are None, of which there is nothing, have no line.
    """
    if hasattr(result, "summary"):
        return str(result.summary())
    made = plain(result)
    if _is_records(made):
        return _records(made)
    if not isinstance(made, dict) or not made:
        return str(result)
    lines = [[_words(n), _text(value)] for n, value in made.items() if value is not None and not _is_records(value)]
    tables = [f"\n{_words(name)}:\n{_records(value)}" for name, value in made.items() if _is_records(value)]
    if not lines and len(tables) == 1:
        return tables[0].partition(":\n")[2]
    return "\n".join([table(lines), *tables]).strip("\n")


def table(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Rows of text in aligned columns, two spaces apart, with `heads` above if there are any."""
    everything = [list(heads), *rows] if heads else list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*everything, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in everything
    )


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _records(values: list[dict[str, Any]]) -> str:
    shown = values[:LONGEST_LIST]
    heads = list(dict.fromkeys(name for record in shown for name in record))
    text = table([[_text(record.get(head)) for head in heads] for record in shown], [_words(head) for head in heads])
    left = len(values) - len(shown)
    return f"{text}\n... and {left:,} more (--json gives all)" if left else text


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, list):
        shown = ", ".join(_text(item) for item in value[:LONGEST_LIST]) or "none"
        return shown + (", ..." if len(value) > LONGEST_LIST else "")
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return str(value)
