"""For a Python started in the folder around a clone: there, `import barlowtwins` finds the clone, not its package.

Without this file Python would take the clone for a package without any code, and report nothing. This module puts the
package inside in its own place, so `import barlowtwins` and `python -m barlowtwins` work there as they do in the clone.
"""

import importlib.util as _util
import sys as _sys
from pathlib import Path as _Path

_INSIDE = _Path(__file__).resolve().parent / "barlowtwins"

if __name__ == _INSIDE.name:  # no one imports a clone in a folder of another name by mistake
    _spec = _util.spec_from_file_location(__name__, _INSIDE / "__init__.py", submodule_search_locations=[str(_INSIDE)])
    assert _spec is not None
    assert _spec.loader is not None
    _sys.modules[__name__] = _util.module_from_spec(_spec)  # what `import` returns is what is found here afterwards
    _spec.loader.exec_module(_sys.modules[__name__])
