"""The versions that made a result, for its record."""

from __future__ import annotations

import platform

import torch
import torchvision

from barlowtwins.version import __version__

__all__ = ["versions"]


def versions(**others: str) -> dict[str, str]:
    """The versions of this package, of torch and torchvision, of `others` and of Python, by name in this order."""
    return {
        "barlowtwins": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **others,
        "python": platform.python_version(),
    }
