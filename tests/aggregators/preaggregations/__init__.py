"""Tests of what is done to rows before a rule, and byzfl, an oracle for these and for rules."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Final


def _aggregators_of_byzfl() -> ModuleType:
    """Import the aggregators of byzfl alone: its benchmarks need torchvision and plots."""
    if "byzfl" in sys.modules:
        return importlib.import_module("byzfl.aggregators")
    spec = importlib.util.find_spec("byzfl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    try:
        return importlib.import_module("byzfl.aggregators")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "byzfl"]:
            del sys.modules[name]


byzfl: Final = _aggregators_of_byzfl()
