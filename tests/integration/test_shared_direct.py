"""Direct delivery end to end: devices hand real share holders their shares by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from client import (
    Assignment,
    ClientConfig,
    FederationTransport,
    MobileClient,
    Outcome,
    Plan,
    RetryPolicy,
    RoundOutcome,
    SealedPayload,
    SharingConfig,
    Submission,
    TrainingResult,
    Weights,
)
from client.sharing.holder_upload import SMALL_BYTES
from client.sharing.update_sealer import deliver_update, seal_update
from client.transport.server_messages import check_in_answer
from protos.fedagg.v1 import federation_pb2 as pb
from security.certificates.credentials import issue_device_certificate, private_key_pem
from security.shared_round.terms.committee import dump_committee
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.bundle import MAX_PREFIX_BYTES
from server.sharing.holders import HolderClient, HolderRefused
from server.sharing.relay import best_holders
from simulation.fleet.identities import identity_files
from tests.client.cutting_proxy import CuttingProxy
from tests.integration.service import (
    DEADLINE_S,
    TASK,
    Service,
    eventually,
    header,
    refusal_of,
    serving,
)
from tests.integration.shared_committee import (
    ISSUER,
    NOW_S,
    Holders,
    Vector,
    mean_of,
    running,
    update_of,
)
from tests.integration.test_shared_round import step_of, task_settings

DEVICES: Final = ("d1", "d2", "d3", "d4")
DIM: Final = 24
LARGE_DIM: Final = 140_001  # bodies are streamed, in more than one chunk
RETRY: Final = RetryPolicy(initial_s=0.05, max_s=0.2, max_attempts=100)
UPDATES: Final = {device: update_of(device, DIM) for device in DEVICES}


class Moving:
    """Trains by moving the model by a fixed update."""

    def __init__(self, update: Vector) -> None:
        self._update = update

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Move, whatever the plan says."""
        del plan, should_stop
        trained, at = {}, 0
        for name, tensor in weights.items():
            part = self._update[at : at + tensor.size]
            trained[name] = tensor + part.reshape(tensor.shape)
            at += tensor.size
        return TrainingResult(weights=trained, num_samples=5)


def config_of(service: Service, holders: Holders, folder: Path, device: str) -> ClientConfig:
    """A device of the round, with a certificate of its own."""
    files = identity_files(folder, device)
    if not files.private_key.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        issued = issue_device_certificate(
            ISSUER, device_id=device, key=key.public_key(), now_s=NOW_S, valid_for_s=1e5
        )
        files.certificate.write_bytes(issued.chain_pem)
        files.private_key.write_bytes(private_key_pem(key))
    return ClientConfig(
        servers=(service.address,),
        task=TASK,
        device_id=device,
        insecure=True,
        retry=RETRY,
        sharing=SharingConfig(
            committee=holders.path,
            certificate=files.certificate,
            private_key=files.private_key,
            holder_patience_s=0.5,
            min_sketch_dim=64,
        ),
    )


async def participate(config: ClientConfig, update: Vector) -> RoundOutcome:
    async with MobileClient(config, Moving(update)) as client:
        return await client.participate_once()


async def participate_all(
    service: Service, holders: Holders, folder: Path, updates: Mapping[str, Vector]
) -> list[RoundOutcome]:
    return await asyncio.gather(
        *(
            participate(config_of(service, holders, folder, device), update)
            for device, update in updates.items()
        )
    )


async def assigned(service: Service, devices: Sequence[str] = DEVICES) -> dict[str, Assignment]:
    """Open a round; what each device is told."""
    told = {}
    for device, message in zip(devices, await service.open_round(*devices), strict=True):
        answer = check_in_answer(pb.CheckInResponse(assignment=message))
        assert isinstance(answer, Assignment)
        told[device] = answer
    return told


async def submit(service: Service, device: str, payload: SealedPayload) -> None:
    data = payload[:]
    await service.inline(header(device, data), data)


def direct(holders: Holders, **sharing: object) -> dict[str, object]:
    return task_settings(holders, sharing={"delivery": "direct", **sharing})


@pytest.mark.slow
@pytest.mark.parametrize("share_format", ["shamir-seeded", "cnf-seeded"])
@pytest.mark.parametrize("dim", [DIM, LARGE_DIM])
async def test_both_deliveries_end_in_the_same_sum(
    tmp_path: Path, redis_url: str, share_format: str, dim: int
) -> None:
    updates = {device: update_of(device, dim) for device in DEVICES}
    models, outcomes = {}, {}
    for delivery in ("relayed", "direct"):
        folder = tmp_path / delivery
        # Holders of their own: those of the first have purged this round.
        async with running(folder, threshold=2, holders=3) as holders:
            task = task_settings(
                holders, sharing={"delivery": delivery, "format": share_format, "sketch-dim": 1024}
            )
            async with serving(folder, redis_url, task=task, dim=dim) as service:
                outcomes[delivery] = await participate_all(service, holders, folder, updates)
                record = await service.finished(1)
                assert record["decision"] == "published", record
                assert record["excluded"] == 0
                models[delivery] = await service.fetch(2)
                step = await step_of(service, 2)
                service.store.flushall()
    np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)
    assert models["relayed"] == models["direct"]
    for outcome in outcomes["relayed"]:
        assert (outcome.outcome, dict(outcome.share_receipts)) == (Outcome.ACCEPTED, {})
    for outcome in outcomes["direct"]:
        assert outcome.outcome is Outcome.ACCEPTED
        assert sorted(outcome.share_receipts) == [1, 2, 3]
        assert outcome.bytes_up > 2 * 8 * dim  # two bodies, to whomever


@pytest.mark.slow
async def test_the_coordinator_gets_prefixes_and_takes_nothing_else(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        running(tmp_path / "c", threshold=2, holders=3) as holders,
        serving(tmp_path, redis_url, task=direct(holders), dim=DIM) as service,
    ):
        told = await assigned(service)
        assert all(assignment.direct_delivery for assignment in told.values())
        assert {a.max_update_bytes for a in told.values()} == {MAX_PREFIX_BYTES}
        params = RoundParameters.from_bytes(told["d1"].shared_parameters)
        whole = holders.sealed(params, "d1", UPDATES["d1"])
        config = config_of(service, holders, tmp_path, "d1")
        prefix = seal_update(UPDATES["d1"], told["d1"], config)[:]
        for payload in (whole, prefix + b"\0", prefix[:-1], b"", prefix[:7]):
            for send in (service.inline, service.stream):
                refusal = await refusal_of(send(header("d1", payload), payload))
                assert refusal.reason in {"MALFORMED_UPDATE", "MALFORMED_REQUEST"}, refusal
        as_d2 = await refusal_of(service.inline(header("d2", prefix), prefix))
        assert as_d2.reason == "MALFORMED_UPDATE"
        receipt = await service.inline(header("d1", prefix), prefix)
        assert await service.inline(header("d1", prefix), prefix) == receipt


@pytest.mark.slow
async def test_a_prefix_is_no_update_where_the_coordinator_relays(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        running(tmp_path / "c", threshold=2, holders=3) as holders,
        serving(tmp_path, redis_url, task=task_settings(holders), dim=DIM) as service,
    ):
        told = await assigned(service)
        config = config_of(service, holders, tmp_path, "d1")
        prefix = seal_update(UPDATES["d1"], replace(told["d1"], direct_delivery=True), config)[:]
        refusal = await refusal_of(service.inline(header("d1", prefix), prefix))
        assert (told["d1"].direct_delivery, refusal.reason) == (False, "MALFORMED_UPDATE")


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_holder_that_is_down_during_the_uploads_is_done_without(
    tmp_path: Path, redis_url: str, comes_back: bool
) -> None:
    """Also where it is there again before the freeze, with the last share alone."""
    async with running(tmp_path / "c", threshold=2, holders=4) as holders:
        task = direct(holders, **{"holder-timeout-s": 1})
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            offers = await with_keys(service, holders)
            await holders.stop(4)
            outcomes = []
            for device, update in UPDATES.items():
                if comes_back and device == DEVICES[-1]:
                    await holders.start(4)
                config = config_of(service, holders, tmp_path, device)
                assert config.sharing is not None
                # gRPC takes its time to look for a holder that was away.
                patience_s = 20.0 if comes_back and device == DEVICES[-1] else 0.5
                sharing = replace(config.sharing, holder_patience_s=patience_s)
                payload, receipts = await delivered(
                    replace(config, sharing=sharing), offers[device], update
                )
                outcomes.append(sorted(receipts))
                await submit(service, device, payload)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            assert record["excluded"] == 0
            step = await step_of(service, 2)
    assert outcomes[:-1] == [[1, 2, 3]] * 3
    assert outcomes[-1] == ([1, 2, 3, 4] if comes_back else [1, 2, 3])
    np.testing.assert_allclose(step, mean_of(UPDATES), rtol=0, atol=1e-7)


@pytest.mark.slow
async def test_too_few_holders_keep_the_update_from_being_submitted(
    tmp_path: Path, redis_url: str
) -> None:
    async with (
        running(tmp_path / "c", threshold=2, holders=3) as holders,
        serving(tmp_path, redis_url, task=direct(holders), dim=DIM) as service,
    ):
        offers = await with_keys(service, holders)
        await holders.stop(3)
        config = config_of(service, holders, tmp_path, "d1")
        config = replace(config, retry=replace(RETRY, max_attempts=6))
        assert offers["d1"].direct_delivery
        client = MobileClient(config, Moving(UPDATES["d1"]))
        outcome = await client.participate_once()
        assert outcome.outcome is Outcome.UNREACHABLE, outcome
        assert (outcome.receipt, dict(outcome.share_receipts)) == (None, {})
        assert service.stored_updates()["accepted"] == b"0"
        await holders.start(3)
        rest = {device: UPDATES[device] for device in DEVICES[1:]}
        again, others = await asyncio.gather(
            eventually(partial(_accepted, client)),
            participate_all(service, holders, tmp_path, rest),
        )
        await client.close()
        record = await service.finished(1)
        assert (record["decision"], record["excluded"]) == ("published", 0), record
        step = await step_of(service, 2)
    # Two holders have its first shares and take no others: it sends the third the same sealing.
    assert {outcome.outcome for outcome in (again, *others)} == {Outcome.ACCEPTED}
    np.testing.assert_allclose(step, mean_of(UPDATES), rtol=0, atol=1e-7)


@pytest.mark.slow
async def test_a_cut_upload_is_sent_again_and_counts_once(tmp_path: Path, redis_url: str) -> None:
    updates = {device: update_of(device, LARGE_DIM) for device in DEVICES}
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = direct(holders, **{"sketch-dim": 1024})
        async with serving(tmp_path, redis_url, task=task, dim=LARGE_DIM) as service:
            target = holders.committee.identity(3).address
            async with CuttingProxy(target, cut_after=[1 << 20, 1 << 20, 10_000]) as proxy:
                config = config_of(service, holders, tmp_path, "d1")
                assert config.sharing is not None
                path = tmp_path / "detour.json"
                there = list(holders.committee.holders)
                there[2] = replace(there[2], address=proxy.address)
                path.write_bytes(dump_committee(replace(holders.committee, holders=tuple(there))))
                config = replace(
                    config,
                    sharing=replace(config.sharing, committee=path, holder_patience_s=20.0),
                )
                rest = {device: updates[device] for device in DEVICES[1:]}
                first, others = await asyncio.gather(
                    participate(config, updates["d1"]),
                    participate_all(service, holders, tmp_path, rest),
                )
                assert proxy.num_cuts >= 3
            record = await service.finished(1)
            assert (record["decision"], record["excluded"]) == ("published", 0), record
            step = await step_of(service, 2)
    for outcome in (first, *others):
        assert outcome.outcome is Outcome.ACCEPTED
        assert sorted(outcome.share_receipts) == [1, 2, 3]
    assert first.bytes_up > others[0].bytes_up + SMALL_BYTES // 2
    np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)


@pytest.mark.slow
async def test_a_repeated_delivery_gives_the_same_receipts(tmp_path: Path, redis_url: str) -> None:
    for dim in (DIM, LARGE_DIM):
        folder = tmp_path / str(dim)
        folder.mkdir()
        async with running(folder / "c", threshold=2, holders=3) as holders:
            task = direct(holders, **{"sketch-dim": 1024})
            async with serving(folder, redis_url, task=task, dim=dim) as service:
                told = await assigned(service)
                config = config_of(service, holders, folder, "d1")
                payload = seal_update(update_of("d1", dim), told["d1"], config)
                first = await deliver_update(payload, told["d1"], config)
                again = await deliver_update(payload, told["d1"], config)
                service.store.flushall()
        assert sorted(first) == [1, 2, 3]
        assert again == first


Cheat = Callable[[ClientConfig, Assignment, Callable[[SealedPayload], Awaitable[None]]], Any]


async def never_submits(
    config: ClientConfig,
    assignment: Assignment,
    _submit: Callable[[SealedPayload], Awaitable[None]],
) -> None:
    await delivered(config, assignment, UPDATES["d1"])


async def never_delivers(
    config: ClientConfig,
    assignment: Assignment,
    submit: Callable[[SealedPayload], Awaitable[None]],
) -> None:
    await submit(seal_update(UPDATES["d1"], assignment, config))


async def delivers_another_update(
    config: ClientConfig,
    assignment: Assignment,
    submit: Callable[[SealedPayload], Awaitable[None]],
) -> None:
    await delivered(config, assignment, UPDATES["d1"])
    await submit(seal_update(UPDATES["d2"], assignment, config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cheat", "is_counted"),
    [(never_submits, False), (never_delivers, True), (delivers_another_update, True)],
)
async def test_only_what_was_both_submitted_and_delivered_is_in_the_set(
    tmp_path: Path, redis_url: str, cheat: Cheat, is_counted: bool
) -> None:
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        honest = {device: UPDATES[device] for device in DEVICES[1:]}
        goal = len(honest) + is_counted
        task = {**direct(holders), "reporting-goal": goal, "over-selection": 4 / goal}
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            told = await assigned(service)
            await cheat(
                config_of(service, holders, tmp_path, "d1"),
                told["d1"],
                partial(submit, service, "d1"),
            )
            for device, update in honest.items():
                payload, _ = await delivered(
                    config_of(service, holders, tmp_path, device), told[device], update
                )
                await submit(service, device, payload)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            assert record["excluded"] == is_counted
            step = await step_of(service, 2)
    np.testing.assert_allclose(step, mean_of(honest), rtol=0, atol=1e-7)


async def test_a_transport_takes_the_prefix_as_it_is(tmp_path: Path, redis_url: str) -> None:
    """For applications with a training loop of their own."""
    async with (
        running(tmp_path / "c", threshold=2, holders=3) as holders,
        serving(tmp_path, redis_url, task=direct(holders), dim=DIM) as service,
    ):
        told = await assigned(service)
        config = config_of(service, holders, tmp_path, "d1")
        payload, receipts = await delivered(config, told["d1"], UPDATES["d1"])
        submission = Submission(
            task=TASK,
            round=1,
            device_id="d1",
            submission_id="s1",
            model_version=1,
            num_samples=1,
            payload=payload,
        )
        transport = FederationTransport(config)
        receipt = await transport.submit(submission)
        await transport.close()
    assert (sorted(receipts), receipt.device_id) == ([1, 2, 3], "d1")


async def delivered(
    config: ClientConfig, assignment: Assignment, update: Vector
) -> tuple[SealedPayload, Mapping[int, bytes]]:
    payload = seal_update(update, assignment, config)
    return payload, await deliver_update(payload, assignment, config)


async def with_keys(service: Service, holders: Holders) -> dict[str, Assignment]:
    """Open a round; return what each device is told once all holders know of it."""
    told = await assigned(service)
    params = RoundParameters.from_bytes(told["d1"].shared_parameters)
    assert params.format is ShareFormat.SHAMIR_SEEDED
    for holder in holders.committee.holders:
        client = HolderClient(
            holder.index, address=holder.address, credentials=None, timeout_s=DEADLINE_S
        )
        await eventually(partial(_receipts, client, params))
        await client.close()
    return told


async def _accepted(client: MobileClient) -> RoundOutcome | None:
    """Offer the device again; gRPC takes its time to look for a holder that was away."""
    outcome = await client.participate_once()
    return None if outcome.outcome is Outcome.UNREACHABLE else outcome


async def _receipts(client: HolderClient, params: RoundParameters) -> Sequence[object] | None:
    try:
        return await client.list_shares(params.sha256)
    except HolderRefused:
        return None


def test_a_holder_that_lacks_much_is_left_out_and_a_device_that_lacks_holders_too() -> None:
    ten = {f"d{index}" for index in range(10)}
    params = make_parameters(threshold=2, holders=4, min_members=3)
    assert (params.quorum, params.scheme.product_shares) == (3, 3)
    full = dict.fromkeys((1, 2, 3), ten)
    everybody = frozenset({1, 2, 3, 4})
    assert best_holders({**full, 4: ten}, params) == everybody
    # One device, or a few, cannot have a holder passed over.
    assert best_holders({**full, 4: ten - {"d1", "d2"}}, params) == everybody
    assert best_holders({**full, 4: {"d1", "d2"}}, params) == {1, 2, 3}
    assert best_holders({**full, 4: set()}, params) == {1, 2, 3}
    # No three of them have enough in common.
    split = {1: {"d1", "d2"}, 2: {"d3", "d4"}, 3: ten, 4: ten}
    assert best_holders(split, params) == everybody
    assert best_holders({1: ten, 2: ten}, params) == {1, 2}
    assert best_holders({}, params) == frozenset()


@given(
    held=st.dictionaries(
        st.integers(1, 4), st.sets(st.sampled_from("abcdef")), min_size=3, max_size=4
    )
)
def test_the_holders_that_count_have_the_most_shares_in_common(held: dict[int, set[str]]) -> None:
    params = make_parameters(threshold=2, holders=4, min_members=2)

    def shares(holders: frozenset[int]) -> int:
        devices = [name for name in "abcdef" if all(name in held[holder] for holder in holders)]
        return len(devices) * len(holders) if len(devices) >= params.min_members else 0

    enough = [
        frozenset(holders)
        for holders in ({1, 2, 3}, {1, 2, 4}, {1, 3, 4}, {2, 3, 4}, {1, 2, 3, 4})
        if holders <= held.keys()
    ]
    found = best_holders(held, params)
    assert shares(found) == max(shares(holders) for holders in enough)
    if shares(found) == 0:
        assert found == held.keys()


def make_parameters(*, threshold: int, holders: int, min_members: int) -> RoundParameters:
    return plan_parameters(
        RoundPlan(
            task=TASK,
            round=1,
            base_version=1,
            model_sha256="0" * 64,
            committee_sha256=bytes(32),
            threshold=threshold,
            holders=holders,
            dim=DIM,
            clip_norm=1.0,
            min_members=min_members,
            max_members=20,
            format=ShareFormat.SHAMIR_SEEDED,
            checks=Checks.NORM,
        )
    )
