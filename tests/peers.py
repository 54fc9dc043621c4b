"""Libraries that are only compared with, which are installed in `.venv-peers` alone.

Tests that need one carry `@pytest.mark.peers`. Where it is not installed they are skipped; once
`make peers` has installed it, `make test` runs them there as well.
"""

import importlib
import warnings
from importlib.util import find_spec
from typing import Any, Final

import pytest

from benchmarks.kernels.peers.byzfl_package import aggregators_of_byzfl


def load(module: str) -> Any:
    """Import a module, or skip the test that asks for it."""
    library = module.partition(".")[0]
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: make peers")
    with warnings.catch_warnings():
        # Their own dependencies warn about each other while they are imported.
        warnings.simplefilter("ignore")
        return importlib.import_module(module) if library != "byzfl" else aggregators_of_byzfl()


class Peer:
    """A module that is imported when a test first uses it."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by who looks for tests, of everything
            raise AttributeError(name)
        return getattr(load(self._module), name)


byzfl: Final = Peer("byzfl.aggregators")
flower_rules: Final = Peer("flwr.server.strategy.aggregate")
flower_strategies: Final = Peer("flwr.server.strategy")
flower: Final = Peer("flwr.common")
