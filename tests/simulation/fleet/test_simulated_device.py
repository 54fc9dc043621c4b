"""Simulated devices against a real gRPC server: what they send, and what they write down."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client import Plan
from protos.fedagg.v1 import federation_pb2 as pb
from security.shared_round.terms.parameters import RoundParameters
from simulation.errors import ScenarioError
from simulation.fleet.device_fleet import device_fleet
from simulation.fleet.device_spec import DeviceSpec, Hold
from simulation.fleet.event_log import read_events
from simulation.fleet.scenarios import Scenario, local_data
from simulation.fleet.simulated_device import _trainer, run_device
from simulation.models import initial_weights
from tests.client.committee import CLIP_NORM, Holders, make_holders
from tests.client.federation import ScriptedFederation
from tests.simulation.acked_updates import AckedUpdate, acked_updates
from tests.simulation.scripted_server import DIM, TASK, ScriptedServer, serve
from updates.compression_plan import CompressionPlan, Method
from updates.plan_message import to_message

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
    header, _ = server.updates["device-0003", 1]
    assert header.num_samples == len(local_data(spec.scenario, 3).y)
    finished = list(read_events([spec.log_path]))[-1]
    assert finished["accepted"] == 2
    assert finished["bytes_down"] == len(server.model)  # the second round's model was cached
    assert finished["bytes_up"] == 2 * header.payload_bytes


async def test_an_exhausted_budget_is_written_down_as_the_end(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.end_reason = pb.RetryLater.BUDGET_EXHAUSTED
    spec = spec_of(3, address, tmp_path)
    assert await run_device(spec)
    assert events_of(spec)[-1] == "exhausted"


async def test_a_device_keeps_what_was_not_sent_in_the_folder_it_is_given(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.compression = to_message(
        CompressionPlan(method=Method.DENSE, dim=DIM, num_values=DIM, error_feedback=True)
    )
    spec = replace(spec_of(3, address, tmp_path), state_dir=tmp_path / "state")
    assert await run_device(spec)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [
        f"residual-{TASK}.device-0003"
    ]


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


def shared_spec(
    index: int, address: str, folder: Path, scenario: Scenario | None = None
) -> DeviceSpec:
    return replace(
        spec_of(index, address, folder),
        scenario=scenario or Scenario(),
        committee=folder / "committee.json",
        identity_dir=folder,
    )


def share_rounds(server: ScriptedServer, folder: Path, **terms: object) -> Holders:
    """Make every round of the server a shared one of a new committee."""
    ids = [f"device-{index:04d}" for index in range(2)]
    holders = make_holders(folder, device_ids=ids)
    server.clipping_norm = CLIP_NORM
    for number in range(1, server.num_rounds + 1):
        facts = ScriptedFederation(model=server.model, dim=DIM, round=number, model_version=1)
        server.terms[number] = holders.plan(facts, **terms).to_bytes()
    return holders


def opened(server: ScriptedServer, holders: Holders, device_id: str) -> NDArray[np.float64]:
    bundle = server.bundles[device_id, 1]
    params = RoundParameters.from_bytes(server.terms[1])
    return holders.update(params, bundle, 1, 3, device_id=device_id)


async def test_a_device_of_a_shared_task_seals_what_it_would_have_sent(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.num_rounds = 1
    server.clipping_norm = CLIP_NORM
    await run_device(spec_of(1, address, tmp_path))
    _, plain = server.updates.pop(("device-0001", 1))
    server.offers.clear()
    holders = share_rounds(server, tmp_path)
    assert await run_device(shared_spec(1, address, tmp_path))
    sealed = opened(server, holders, "device-0001")
    np.testing.assert_allclose(sealed, plain, atol=2.0**-21, rtol=0)
    assert events_of(shared_spec(1, address, tmp_path))[-3:] == ["submitting", "acked", "finished"]


async def test_an_attacker_in_a_shared_task_stays_within_the_norm(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.num_rounds = 1
    holders = share_rounds(server, tmp_path)
    await run_device(shared_spec(0, address, tmp_path))
    honest = opened(server, holders, "device-0000")
    server.offers.clear()
    scenario = Scenario(num_attackers=1, attack="sign-flip", attack_scale=50.0)
    await run_device(shared_spec(0, address, tmp_path, scenario))
    sent = opened(server, holders, "device-0000")
    norm = np.linalg.norm(sent)
    assert norm <= CLIP_NORM + 1e-4
    np.testing.assert_allclose(sent / norm, -honest / np.linalg.norm(honest), atol=1e-5)


async def test_an_attack_on_shares_is_made_where_there_are_shares(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.num_rounds = 1
    holders = share_rounds(server, tmp_path)
    scenario = Scenario(num_attackers=1, attack="over-norm", attack_scale=3.0)
    for index in (0, 1):
        await run_device(shared_spec(index, address, tmp_path, scenario))
    assert np.linalg.norm(opened(server, holders, "device-0000")) == pytest.approx(4, rel=1e-3)
    assert np.linalg.norm(opened(server, holders, "device-0001")) <= CLIP_NORM + 1e-4
    with pytest.raises(ScenarioError, match="over-norm"):
        spec_of(0, address, tmp_path, scenario)


async def test_an_update_that_missed_its_round_is_written_down(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    server.refuse_round = 1
    share_rounds(server, tmp_path, staleness_weights=(2, 1))
    spec = shared_spec(0, address, tmp_path)
    assert await run_device(spec)
    assert events_of(spec) == [
        *("checked_in", "submitting", "kept", "refused"),
        *("checked_in", "reused", "submitting", "acked"),
        "finished",
    ]
    assert set(acked_updates(tmp_path)) == promised(server)


async def test_a_device_of_a_shared_task_sends_nothing_to_a_plain_round(
    scripted_server: Server, tmp_path: Path
) -> None:
    server, address = scripted_server
    share_rounds(server, tmp_path)
    server.terms.clear()
    server.num_rounds = 1
    spec = shared_spec(0, address, tmp_path)
    assert await run_device(spec)
    assert not server.updates
    (refused,) = (e for e in read_events([spec.log_path]) if e["event"] == "refused")
    assert (refused["outcome"], refused["reason"]) == ("failed", "WEAKER_THAN_POLICY")


async def test_a_device_whose_files_are_missing_says_so(tmp_path: Path) -> None:
    spec = shared_spec(0, "127.0.0.1:1", tmp_path)
    assert not await run_device(spec)
    (failed,) = read_events([spec.log_path])
    assert failed["event"] == "failed"
    assert "committee.json cannot be read" in str(failed["error"])


def test_a_device_with_a_committee_needs_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="identity_dir"):
        replace(spec_of(0, "127.0.0.1:1", tmp_path), committee=tmp_path / "committee.json")


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


def test_a_held_device_waits_in_its_round_and_in_no_other(tmp_path: Path) -> None:
    hold = Hold(round=2, until=tmp_path / "go-on")
    spec = replace(spec_of(3, "127.0.0.1:1", tmp_path), hold=hold)
    asked: list[int] = []

    def go_on_at_the_third_time() -> bool:
        asked.append(len(asked))
        if len(asked) == 3:
            hold.until.touch()
        return False

    weights = initial_weights("digits", 0)
    plan = Plan(local_epochs=1, batch_size=1_000, round=1)
    trainer = _trainer(spec)
    trainer.train(weights, plan, go_on_at_the_third_time)
    assert not hold.until.exists()
    asked.clear()
    held = trainer.train(weights, replace(plan, round=2), go_on_at_the_third_time)
    assert len(asked) == 4  # three times while it waits, once for its only step
    assert held.loss_after != held.loss_before
    hold.until.unlink()
    stopped = trainer.train(weights, replace(plan, round=2), lambda: True)
    assert stopped.loss_after == stopped.loss_before
