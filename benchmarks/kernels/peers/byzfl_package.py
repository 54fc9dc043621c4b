"""Imports byzfl without the data sets and plots that `import byzfl` needs too."""

import importlib
import importlib.util
import sys
from types import ModuleType


def aggregators_of_byzfl() -> ModuleType:
    """Import the rules alone.

    Raises:
        ImportError: if byzfl, or what its rules need, is not installed.
    """
    if "byzfl" in sys.modules:
        return importlib.import_module("byzfl.aggregators")
    spec = importlib.util.find_spec("byzfl")
    bare = ModuleType("byzfl")
    bare.__path__ = list((spec and spec.submodule_search_locations) or ())
    sys.modules["byzfl"] = bare
    try:
        return importlib.import_module("byzfl.aggregators")
    finally:
        # Whoever imports byzfl later gets the whole of it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "byzfl"]:
            del sys.modules[name]
