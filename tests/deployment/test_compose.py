import re
from pathlib import Path
from typing import Any, Final

import yaml

from cli.admin.client import TOKEN_ENV
from server.config import ServerConfig, load_config
from server.config.durability import Durability
from tests.looped import looped

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]


def _filled_in(value: str) -> str:
    """What Docker makes of a value: every ${NAME:-default} replaced by its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _environment(service: str) -> dict[str, str]:
    variables = SERVICES[service].get("environment", {})
    return {name: _filled_in(value) for name, value in variables.items()}


def _ports(service: str) -> list[str]:
    return [_filled_in(port) for port in SERVICES[service].get("ports", [])]


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
    assert "--count 10" in _filled_in(SERVICES["devices"]["command"])
    assert task.reporting_goal * task.over_selection <= 10


def test_local_state_lies_on_a_volume_and_nowhere_else() -> None:
    config = _coordinator()
    mounts = {mount.split(":")[1] for mount in SERVICES["coordinator"]["volumes"]}
    assert str(config.store.data_dir) in mounts
    assert config.blob_url.startswith(f"file://{config.store.data_dir}/")


@looped("name", SERVICES)
def test_services_run_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]


@looped("name", SERVICES)
def test_ports_are_published_on_the_loopback_interface_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in _ports(name))


def test_every_coordinator_has_a_port_of_each_kind() -> None:
    replicas = SERVICES["coordinator"]["deploy"]["replicas"]
    for published in _ports("coordinator"):
        first, last = published.split(":")[1].split("-")
        assert int(last) - int(first) + 1 == replicas


def test_the_admin_commands_in_a_coordinator_have_its_token() -> None:
    token = _coordinator().admin.token
    assert token is not None
    assert _environment("coordinator")[TOKEN_ENV] == token.get_secret_value()


def test_devices_of_a_finished_task_are_not_started_again() -> None:
    assert SERVICES["devices"]["restart"] == "on-failure"


def test_devices_cannot_reach_redis() -> None:
    assert set(SERVICES["devices"]["networks"]).isdisjoint(SERVICES["redis"]["networks"])
    assert COMPOSE["networks"]["state"]["internal"] is True


SHARED: Final = {name for name, service in SERVICES.items() if service.get("profiles")}
HOLDERS: Final = {f"holder-{number}" for number in range(1, 6)}


def _mounts(service: str) -> dict[str, str]:
    """Source of each path that a service mounts."""
    volumes = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {parts[1]: parts[0] for parts in volumes}


def test_the_shared_mode_waits_for_its_profile() -> None:
    assert {"committee", "coordinator-shared", "devices-shared"} | HOLDERS == SHARED
    assert all(SERVICES[name]["profiles"] == ["shared"] for name in SHARED)


def test_the_shared_coordinator_accepts_its_configuration() -> None:
    config = load_config(
        ROOT / "docs/samples/compose-shared.toml", _environment("coordinator-shared")
    )
    (task,) = config.tasks
    assert task.is_shared
    assert task.reporting_goal * task.over_selection <= 10
    assert str(task.sharing.committee).startswith("/var/lib/share-holder/")
    assert config.store.url != _coordinator().store.url


def test_a_holder_has_its_own_keys_and_shares_and_no_others() -> None:
    folder = "/var/lib/share-holder"
    for name in HOLDERS:
        assert _mounts(name) == {folder: "committee", f"{folder}/{name}": name}
    sealed = {"committee", "identities"} | HOLDERS
    assert set(_mounts("committee").values()) == sealed
    assert HOLDERS.isdisjoint(_mounts("coordinator-shared").values())
    assert HOLDERS.isdisjoint(_mounts("devices-shared").values())


def test_holders_and_devices_do_not_meet() -> None:
    devices = set(SERVICES["devices-shared"]["networks"])
    assert devices.isdisjoint(SERVICES["redis"]["networks"])
    for name in HOLDERS:
        assert devices.isdisjoint(SERVICES[name]["networks"])
        assert "state" not in SERVICES[name]["networks"]
