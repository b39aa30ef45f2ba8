"""`python -m barlowtwins` is the command `barlowtwins`."""

from __future__ import annotations

import sys

from barlowtwins.cli import main

__all__: list[str] = []

if __name__ == "__main__":  # spawned worker processes import this file, too
    sys.exit(main())
