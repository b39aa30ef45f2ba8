"""On PYTHONPATH while tests run: every Python that a test starts notes its errors (see error_coverage.py)."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ERRORS = "barlowtwins.core.errors"


class _Watch(importlib.abc.MetaPathFinder):
    """Lets `barlowtwins.core.errors` be found as ever, and begins to take notes when it has been imported."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != ERRORS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                _notes().note_raises()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _notes():  # type: ignore[no-untyped-def]
    """tests/error_coverage.py, under a name that nobody else uses."""
    place = Path(__file__).parent.parent / "error_coverage.py"
    spec = importlib.util.spec_from_file_location("barlowtwins_tests_raises", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


sys.meta_path.insert(0, _Watch())
