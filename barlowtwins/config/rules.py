"""How settings check themselves."""

from __future__ import annotations

import re

from barlowtwins.core.errors import UsageError

__all__ = ["part_of", "require"]


def require(condition: bool, message: str) -> None:
    """Raise UsageError(message) unless `condition` holds."""
    if not condition:
        raise UsageError(message)


def part_of(text: str) -> tuple[int, int]:
    """The two numbers of "3/16"; raises UsageError unless the first is one of 1 to the second."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    part, parts = map(int, found.groups()) if found else (0, 0)
    require(1 <= part <= parts, f"--part is {text!r}; it must be such as 3/16: the third of 16, counted from 1")
    return part, parts
