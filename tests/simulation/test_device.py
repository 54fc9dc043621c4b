"""Simulated devices against a real gRPC server: what they send, and what they write down."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulation.device import run_device
from simulation.device_fleet import DeviceSpec, device_fleet
from simulation.event_log import AckedUpdate, acked_updates, read_events
from simulation.scenarios import Scenario, local_data
from tests.simulation.scripted_server import TASK, ScriptedServer, serve

Server = tuple[ScriptedServer, str]


def spec_of(
    index: int, address: str, log_dir: Path, scenario: Scenario | None = None
) -> DeviceSpec:
    return DeviceSpec(
        scenario=scenario or Scenario(),
        index=index,
        servers=(address,),
        task=TASK,
        log_dir=log_dir,
    )


def promised(server: ScriptedServer) -> set[AckedUpdate]:
    return {
        AckedUpdate(
            device_id=device_id,
            round=number,
            submission_id=header.submission_id,
            digest=header.payload_digest.hex(),
        )
        for (device_id, number), (header, _) in server.updates.items()
    }


def events_of(spec: DeviceSpec) -> list[str]:
    return [str(event["event"]) for event in read_events([spec.log_path])]


async def test_a_device_writes_down_exactly_what_the_server_promised(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    spec = spec_of(3, address, tmp_path)
    assert await run_device(spec)
    assert set(acked_updates(tmp_path)) == promised(server)
    assert events_of(spec) == ["checked_in", "submitting", "acked"] * 2 + ["finished"]
    (header, _) = server.updates["device-0003", 1]
    assert header.num_samples == len(local_data(spec.scenario, 3).y)
    finished = list(read_events([spec.log_path]))[-1]
    assert finished["accepted"] == 2
    assert finished["bytes_down"] == len(server.model)  # the second round's model was cached
    assert finished["bytes_up"] == 2 * header.payload_bytes


async def test_a_refusal_is_written_down_with_its_reason(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.refuse_round = 1
    spec = spec_of(0, address, tmp_path)
    assert await run_device(spec)
    (refused,) = (e for e in read_events([spec.log_path]) if e["event"] == "refused")
    assert (refused["outcome"], refused["reason"]) == ("round-closed", "ROUND_CLOSED")
    assert refused["round"] == 1
    assert {update.round for update in acked_updates(tmp_path)} == {2}
    assert set(acked_updates(tmp_path)) == promised(server)


async def test_an_attacker_sends_the_attack_on_what_it_would_have_sent(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.num_rounds = 1
    await run_device(spec_of(0, address, tmp_path))
    _, honest = server.updates.pop(("device-0000", 1))
    server.offers.clear()
    scenario = Scenario(num_attackers=1, attack="sign-flip", attack_scale=2.0)
    await run_device(spec_of(0, address, tmp_path, scenario))
    _, sent = server.updates["device-0000", 1]
    assert np.linalg.norm(honest) > 0
    np.testing.assert_array_equal(sent, -2 * honest)


async def test_a_cancelled_device_says_so(scripted_server: Server, tmp_path: Path) -> None:
    server, address = scripted_server
    server.num_rounds = 1_000_000
    spec = spec_of(0, address, tmp_path)
    device = asyncio.create_task(run_device(spec))
    await server.wait_for_devices(1)
    device.cancel()
    with pytest.raises(asyncio.CancelledError):
        await device
    assert events_of(spec)[-1] == "stopped"
    # The device may not have heard the last promise; it cannot have heard more than there are.
    assert set(acked_updates(tmp_path)) <= promised(server)


async def test_a_device_that_can_never_be_accepted_gives_up(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.is_unknown = True
    spec = spec_of(0, address, tmp_path)
    assert not await run_device(spec)
    (failed,) = read_events([spec.log_path])
    assert failed["event"] == "failed"
    assert "UNKNOWN_TASK" in str(failed["error"])


async def test_a_device_stops_after_the_updates_it_was_asked_for(
    scripted_server: Server, tmp_path: Path
) -> None:
    _, address = scripted_server
    spec = replace(spec_of(0, address, tmp_path), max_rounds=1)
    assert await run_device(spec)
    assert events_of(spec) == ["checked_in", "submitting", "acked", "finished"]


@pytest.mark.slow
async def test_a_device_waits_for_a_server_that_goes_away(tmp_path: Path) -> None:
    script = ScriptedServer(num_rounds=50)
    server, port = await serve(script)
    spec = spec_of(0, f"127.0.0.1:{port}", tmp_path)
    device = asyncio.create_task(run_device(spec))
    await script.wait_for_devices(1)
    await server.stop(0)
    assert len(script.updates) < 50
    server, _ = await serve(script, port)
    assert await device
    await server.stop(0)
    assert events_of(spec)[-1] == "finished"
    # Every offer the server remembers was answered or lost; nothing was counted twice.
    acked = acked_updates(tmp_path)
    assert len(acked) == len(set(acked)) >= 48
    assert set(acked) <= promised(script)


@pytest.mark.slow
async def test_a_fleet_of_devices_accounts_for_every_update(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    specs = [spec_of(index, address, tmp_path) for index in range(3)]
    with device_fleet(specs) as fleet:
        result = await asyncio.to_thread(fleet.wait, 60.0)
    assert result.exit_codes == (0, 0, 0)
    assert len(server.updates) == 6
    assert set(acked_updates(tmp_path)) == promised(server)
    assert all(events_of(spec)[-1] == "finished" for spec in specs)


@pytest.mark.slow
async def test_a_stopped_fleet_of_devices_ends_in_order(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.num_rounds = 1_000_000
    specs = [spec_of(index, address, tmp_path) for index in range(2)]
    with device_fleet(specs) as fleet:
        await asyncio.to_thread(fleet.wait_started)
        await server.wait_for_devices(2)
        result = await asyncio.to_thread(fleet.stop)
    assert result.exit_codes == (0, 0)
    assert [events_of(spec)[-1] for spec in specs] == ["stopped", "stopped"]
