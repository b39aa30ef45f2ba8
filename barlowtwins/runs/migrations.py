"""Records of earlier versions, as this version would have written them.

config.json and the checkpoints hold the settings of their run under a schema number. A setting that is new needs no
migration: its default is what older runs had (`config.settings.with_defaults`). One that is renamed, or means something
else than before, takes a new `SCHEMA` and a function in `MIGRATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from barlowtwins.core.errors import ConfigError

__all__ = ["MIGRATIONS", "SCHEMA", "current", "numbered"]

SCHEMA = 2
"""1: version 0.1.0, without a number. 2: the same, with it."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda record: record}
"""What makes a record of schema n one of schema n + 1."""


def numbered(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it is written: with the number of its schema."""
    return {"schema": SCHEMA, **record}


def current(record: dict[str, Any], where: Path) -> dict[str, Any]:
    """A record as it was read, brought to the schema of this version and without the number.

    Args:
        record: the settings of a run, of any schema up to this one.
        where: the file, for the message.

    Raises:
        ConfigError: it was written by a later version.
    """
    settings = dict(record)
    schema = settings.pop("schema", 1)
    if schema not in range(1, SCHEMA + 1):
        raise ConfigError(
            f"{where} has settings of schema {schema!r}, this version of barlowtwins reads 1 to {SCHEMA}; use the "
            "version that wrote it, or a newer one"
        )
    for number in range(schema, SCHEMA):
        settings = MIGRATIONS[number](settings)
    return settings
