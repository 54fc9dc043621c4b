"""The machine that figures were measured on, and the versions of what was measured."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

import psutil

from aggregators.kernels.threads import num_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on, and with which versions of what."""

    processor: str
    cores: int
    memory_gb: float
    system: str
    python: str
    versions: Mapping[str, str]

    @classmethod
    def here(cls, packages: Iterable[str]) -> Self:
        """Describe this machine, with those of the packages that are installed."""
        return cls(
            processor=_processor(),
            cores=num_cores(),
            memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            versions={name: found for name in packages if (found := _version(name)) is not None},
        )

    def __str__(self) -> str:
        packages = "".join(f", {name} {version}" for name, version in self.versions.items())
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gb} GB, {self.system}, "
            f"Python {self.python}{packages}"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
