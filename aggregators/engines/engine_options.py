"""Which engines there are and what they run on: all that settings need to know, loading none."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

LIBRARIES: Final = {"local": "", "torch": "torch", "ray": "ray"}
"""Engines, and the library each needs, which is the extra that brings it; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What engines run on. None of it changes a result.

    Attributes:
        num_threads: of the kernels of this process; None: one a core.
        torch_device: as torch names it, such as cuda:1; empty: cuda where there is one, else cpu.
        ray_address: host:port of a Ray cluster; empty: one of its own on this machine.
        ray_workers: processes that share a round's updates, from 1.
    """

    num_threads: int | None = None
    torch_device: str = ""
    ray_address: str = ""
    ray_workers: int = 2


def engine_problem(name: str) -> str | None:
    """Say why an engine cannot be opened, as far as is known without opening it; None: it can."""
    if name not in LIBRARIES:
        return f"engine={name!r} must be one of {', '.join(LIBRARIES)}"
    library = LIBRARIES[name]
    if library and find_spec(library) is None:
        return f"engine={name!r} needs the extra fedagg[{library}], which is not installed"
    return None
