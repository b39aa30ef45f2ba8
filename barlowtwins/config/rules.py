"""How settings check themselves: the type of a field says which values it takes.

    epochs: Count | None = None        epochs must be >= 1, got 0

`Checked` converts what stands for a value without doubt (a `Path` for its text, 16.0 for 16, a list for a tuple) and
refuses the rest. A message names the field; the command line turns that name into the flag.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from barlowtwins.core.errors import UsageError

__all__ = [
    "Checked",
    "Count",
    "DataPath",
    "FilePath",
    "Fraction",
    "Natural",
    "NonNegative",
    "Positive",
    "Range",
    "Seed",
    "convert",
    "part_of",
    "require",
    "setting_types",
    "shared_last",
]

Class = TypeVar("Class", bound=type)
Notes = tuple[Any, ...]  # what `Annotated` adds to a type


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is left out."""

    def __contains__(self, value: float) -> bool:
        inside = self.low < value if self.above else self.low <= value
        return inside and value <= self.high and value < math.inf

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"from {self.low} to {self.high}"
        return f"{'>' if self.above else '>='} {self.low}"


PATH, SOURCE = "path", "source"
FilePath = Annotated[str, PATH]
"""A file, a folder or a name; `~` is the home folder."""
DataPath = Annotated[str, PATH, SOURCE]
"""The same for images; in Python also a `Source` that is open."""
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Checked:
    """Settings whose values have the types of their fields."""

    def __post_init__(self) -> None:
        settings: Any = type(self)
        for name, kind in setting_types(settings).items():
            object.__setattr__(self, name, convert(name, getattr(self, name), kind))


@functools.cache
def setting_types(settings: type) -> dict[str, Any]:
    """The type of each field, with what `Annotated` adds."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings)}


def convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind` has it.

    Args:
        name: of the setting, for the message.
        value: as the user gave it.
        kind: str, int, float, bool, a `Literal`, a tuple of one of these, or one of them with `| None`; `Annotated`
            with a `Range` or `PATH`.

    Raises:
        UsageError: it is of another type, or out of range.
    """
    notes: Notes = ()
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        notes += tuple(more)
    arms = get_args(kind)
    if type(None) in arms:
        return None if value is None else convert(name, value, arms[0])
    if get_origin(kind) is Literal:
        require(value in arms, f"{name} must be one of {', '.join(arms)}, got {value!r}", name)
        return value
    if get_origin(kind) is tuple:
        require(isinstance(value, (tuple, list)), f"{name} must be a tuple or a list, got {value!r}", name)
        return tuple(convert(name, item, arms[0]) for item in value)
    words, found = READERS[kind](value, notes)
    require(found is not None, f"{name} must be {words}, got {value!r}", name)
    for note in notes:
        if isinstance(note, Range):
            require(found in note, f"{name} must be {note}, got {value!r}", name)
    return found


def _text(value: Any, notes: Notes) -> tuple[str, str | None]:
    if PATH not in notes:
        return "a string", value if isinstance(value, str) else None
    if SOURCE in notes and callable(getattr(value, "fingerprint", None)):
        return "a source", value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return "a path", _at_home(value) if isinstance(value, str) else None


def _at_home(path: str) -> str:
    """The path with the home folder for a leading `~`, also behind a prefix such as that of channels:FOLDER."""
    prefix, tilde, rest = re.match(r"((?:channels:)?)(~?)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
    return prefix + os.path.expanduser(tilde + rest) if tilde else path


def _whole(value: Any, notes: Notes) -> tuple[str, int | None]:
    whole = not isinstance(value, bool) and isinstance(value, numbers.Real) and value == value // 1
    return "a whole number", int(value) if whole else None


def _number(value: Any, notes: Notes) -> tuple[str, float | None]:
    real = not isinstance(value, bool) and isinstance(value, numbers.Real)
    try:
        return "a number", float(value) if real else None
    except OverflowError:  # a whole number of hundreds of digits
        return "a number", None


def _truth(value: Any, notes: Notes) -> tuple[str, bool | None]:
    return "True or False", value if isinstance(value, bool) else None


READERS: dict[Any, Callable[[Any, Notes], tuple[str, Any]]] = {str: _text, int: _whole, float: _number, bool: _truth}
"""What reads a value of each type: says in words what it takes, and returns None for anything else."""


def shared_last(settings: Class) -> Class:
    """Put the keyword-only fields of a dataclass, those that it shares with others, at the end of its help."""
    known: dict[str, Any] = settings.__dataclass_fields__  # type: ignore[attr-defined]
    ordered = sorted(known.items(), key=lambda item: item[1].kw_only)
    settings.__dataclass_fields__ = dict(ordered)  # type: ignore[attr-defined]
    return settings


def require(condition: bool, message: str, *names: str) -> None:
    """Raise UsageError(message) unless `condition` holds.

    Args:
        condition: what has to hold.
        message: what is wrong.
        names: the settings that the message names, which the command line turns into flags.
    """
    if not condition:
        error = UsageError(message)
        error.settings = names
        raise error


def part_of(text: str) -> tuple[int, int]:
    """The two numbers of "3/16"; raises UsageError unless the first is one of 1 to the second."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    part, parts = map(int, found.groups()) if found else (0, 0)
    require(1 <= part <= parts, f"part must be such as 3/16 (the third of 16, counted from 1), got {text!r}", "part")
    return part, parts
