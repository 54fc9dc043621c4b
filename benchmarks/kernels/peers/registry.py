"""Finds the libraries to compare with. None is needed: those not installed are left out."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Final

from benchmarks.kernels.ways import Ways

_MODULES: Final[Mapping[str, str]] = {
    "numpy": "benchmarks.kernels.peers.numpy_peer",
    "torch": "benchmarks.kernels.peers.torch_peer",
    "byzfl": "benchmarks.kernels.peers.byzfl_peer",
    "flwr": "benchmarks.kernels.peers.flwr_peer",
}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {"byzfl": ("byzfl", "torch")}

PEERS: Final = tuple(_MODULES)


class PeerMissing(Exception):
    """A library cannot be compared with; the text says why."""


def load_ways(peer: str) -> Ways:
    """Import a peer's module and list what it computes.

    Raises:
        PeerMissing: if the library, or one that it needs, cannot be imported.
    """
    missing = [name for name in _NEEDED.get(peer, (peer,)) if not is_installed(name)]
    if missing:
        message = f"{' and '.join(missing)} not installed"
        raise PeerMissing(message)
    try:
        module = importlib.import_module(_MODULES[peer])
    except ImportError as error:
        message = f"cannot be imported: {error}"
        raise PeerMissing(message) from error
    ways: Ways = module.WAYS
    return ways


def is_installed(package: str) -> bool:
    """Tell whether a package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None
