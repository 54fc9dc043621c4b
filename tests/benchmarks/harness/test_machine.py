from importlib.metadata import version
from pathlib import Path

import pytest

from aggregators.kernels.threads import num_cores
from benchmarks.harness import machine
from benchmarks.harness.machine import Machine


def test_the_machine_is_described() -> None:
    found = Machine.here(("numpy", "no-such-package"))
    assert found.cores == num_cores()
    assert found.memory_gb > 0
    assert found.processor
    assert found.versions == {"numpy": version("numpy")}
    assert str(found).startswith(f"{found.processor}, {found.cores} cores, ")
    assert str(found).endswith(f", numpy {version('numpy')}")


def test_a_processor_without_a_name_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert machine._processor()
