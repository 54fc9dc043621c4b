import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from server.config import ServerConfig, load_config
from server.storage.ports import Durability

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]


def _environment(service: str) -> dict[str, str]:
    """The service's variables, every ${NAME:-default} replaced by its default."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        for name, value in SERVICES[service].get("environment", {}).items()
    }


def _coordinator() -> ServerConfig:
    return load_config(ROOT / "docs/samples/compose.toml", _environment("coordinator"))


def test_the_coordinators_accept_their_configuration() -> None:
    config = _coordinator()
    assert [task.name for task in config.tasks] == ["digits"]
    assert config.admin.token is not None


def test_redis_keeps_the_durability_the_coordinators_promise() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert _coordinator().store.durability is Durability.MACHINE
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_a_cohort_fits_into_the_ten_devices() -> None:
    (task,) = _coordinator().tasks
    assert "--count 10" in SERVICES["devices"]["command"]
    assert task.reporting_goal * task.over_selection <= 10


def test_local_state_lies_on_a_volume_and_nowhere_else() -> None:
    config = _coordinator()
    mounts = {mount.split(":")[1] for mount in SERVICES["coordinator"]["volumes"]}
    assert str(config.store.data_dir) in mounts
    assert config.blob_url.startswith(f"file://{config.store.data_dir}/")


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_interface_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_devices_cannot_reach_redis() -> None:
    assert set(SERVICES["devices"]["networks"]).isdisjoint(SERVICES["redis"]["networks"])
    assert COMPOSE["networks"]["state"]["internal"] is True
