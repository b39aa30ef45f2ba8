"""The entries of `torch.hub.load`. Only their names: the functions, with documentation, are in barlowtwins/hub.py.

    torch.hub.list("OWNER/barlowtwins:v0.1.0", trust_repo=True)
    torch.hub.help("OWNER/barlowtwins:v0.1.0", "resnet50", trust_repo=True)
    torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet50", trust_repo=True)

`trust_repo=True` answers the question that torch.hub would ask on standard input; a tag pins the code.
"""

import importlib as _importlib
import importlib.util as _importlib_util
import re as _re
import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "requests", "PIL"]

_HERE = _Path(__file__).resolve().parent


def _check_dependencies() -> None:
    """torch.hub checks `dependencies` only after this file is imported, which would fail first and say less."""
    missing = [name for name in dependencies if _importlib_util.find_spec(name) is None]
    if missing:
        packages = " ".join("pillow" if name == "PIL" else name for name in missing)
        raise ImportError(f"barlowtwins needs {', '.join(missing)}: not installed here; try: pip install {packages}")


def _check_origin() -> None:
    """torch.hub leaves the package imported, so that a second copy of it would silently be the first."""
    package = _importlib.import_module("barlowtwins")
    there = _Path(next(iter(package.__path__))).resolve()
    if there != _HERE / "barlowtwins":
        ours = _re.search(r'__version__ = "(.+)"', (_HERE / "barlowtwins" / "version.py").read_text("utf-8"))
        raise ImportError(
            f"this process has already imported barlowtwins {getattr(package, '__version__', '(no version)')} from "
            f"{there} and cannot also use barlowtwins {ours[1] if ours else '(no version)'} from {_HERE}: "
            "start a new process, or use the one that is imported (import barlowtwins)"
        )


_check_dependencies()
_check_origin()
if str(_HERE) not in _sys.path[1:]:
    _sys.path.append(str(_HERE))  # torch.hub takes its own entry out again, but worker processes import the package too

from barlowtwins.hub import barlow_twins, embedder, preprocess, resnet18, resnet50  # noqa: E402, F401
