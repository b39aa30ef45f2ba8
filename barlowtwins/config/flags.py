"""`Positional` and `arg` of tyro, imported when an annotation is evaluated: it takes most of `barlowtwins --help`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Positional", "arg"]

if TYPE_CHECKING:
    from tyro.conf import Positional as Positional, arg as arg
else:

    class Positional:
        """`Positional[str]` is an argument without a flag."""

        def __class_getitem__(cls, kind: Any) -> Any:
            from tyro.conf import Positional

            return Positional[kind]

    def arg(**details: Any) -> Any:
        """How the help of a flag looks."""
        from tyro.conf import arg

        return arg(**details)
