"""Formats the result of a command as text and as JSON.

A result is a dataclass. It may define `summary() -> str` for the text and `to_dict()` for the JSON; by default both are
made from its fields.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["data_size", "escape_controls", "plain", "plural", "render", "table"]

LONGEST_LIST = 20  # rows of a list in the text; the JSON has all of them


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun, such as "1 step" or "1,200 steps"; `many` is an irregular plural."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def data_size(count: float) -> str:
    """Return a number of bytes as text, such as "94.0 MB"; 1 kB is 1,000 bytes."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count:.0f} B"


def plain(value: Any) -> Any:
    """Convert `value` to what JSON can hold: dict, list, str, int, float, bool, None.

    NaN and infinity become None, paths strings, arrays and tensors lists.
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
    if hasattr(value, "tolist"):  # NumPy and torch, without importing them
        return plain(value.tolist())
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, os.PathLike)):
        return [plain(item) for item in value]
    return str(value)


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """`text` with control characters spelled out, such as \\x1b; newlines and tabs stay.

    Names of files, labels and messages may come from strangers, and a terminal obeys what it is sent.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def render(result: Any) -> str:
    """Format `result` as text: its `summary()`, else one line per field and a table for a list of records.

    Fields that are None are omitted.
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
    """Align rows of text in columns, two spaces apart, below `heads` if there are any."""
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
