"""What a fleet of devices shares before it forks."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from simulation.errors import DatasetError
from simulation.fleet.device_fleet import load_shared
from simulation.fleet.device_spec import DeviceSpec
from simulation.fleet.fleet import Fleet
from simulation.fleet.scenarios import Scenario

HEAVY = ("torch", "numba", "llvmlite", "sklearn", "scipy")


def write_loaded_modules(specs: Sequence[DeviceSpec]) -> None:
    facts: dict[str, object] = {"heavy": [name for name in HEAVY if name in sys.modules]}
    facts["client"] = {"grpc", "client.mobile_client"} <= sys.modules.keys()
    facts["threads"] = len(list(Path("/proc/self/task").iterdir())) > 1
    specs[0].log_path.write_text(json.dumps(facts))


@pytest.mark.slow
def test_processes_fork_with_the_client_loaded_and_neither_compiler_nor_threads(
    tmp_path: Path,
) -> None:
    spec = DeviceSpec(
        scenario=Scenario(), index=7, servers=("127.0.0.1:1",), task="digits", log_dir=tmp_path
    )
    assert spec.log_path == tmp_path / "device-0007.jsonl"
    with Fleet([spec], write_loaded_modules, prepare=load_shared) as fleet:
        fleet.wait(60.0)
    assert json.loads(spec.log_path.read_text()) == {
        "heavy": [],
        "client": True,
        "threads": False,
    }


@pytest.mark.slow
def test_absent_data_is_told_before_anything_forks(tmp_path: Path) -> None:
    spec = DeviceSpec(
        scenario=Scenario(dataset="mnist"),
        index=0,
        servers=("127.0.0.1:1",),
        task="mnist",
        log_dir=tmp_path,
        data_dir=tmp_path,
    )
    with pytest.raises(DatasetError, match="--data-dir"):
        load_shared([spec])
