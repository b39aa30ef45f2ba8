"""How settings check themselves."""

from __future__ import annotations

from barlowtwins.errors import UsageError

__all__ = ["require"]


def require(condition: bool, message: str) -> None:
    """Raise UsageError(message) unless `condition` holds."""
    if not condition:
        raise UsageError(message)
