"""For a Python started in the folder around a clone: there, `barlowtwins` is the clone, not the package in it.

Without this file Python would take that folder for a package without any code and say nothing. With it, `import
barlowtwins` and `python -m barlowtwins` there are the package inside, as they are inside the clone.
"""

from pathlib import Path as _Path

_INSIDE = _Path(__file__).resolve().parent / "barlowtwins"

if __name__ == _INSIDE.name:  # a clone in a folder of another name is in nobody's way
    __path__ = [str(_INSIDE)]
    __file__ = str(_INSIDE / "__init__.py")
    exec(compile(_Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
