"""Shared rounds when parties fail: drivers ticked by hand, real holders, a clock that stands still.

Between any two ticks a holder or the leader may die. Whatever is left of the committee must finish
the round with the right mean, or abandon it with the reason that the task's settings promise.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from security.shared_round.keys.signing import sign_statement
from server.round.ports import AdmissionVerdict
from server.round.state import Phase
from server.sharing.holders import HolderAway
from server.storage.keys import task_prefix
from tests.integration.service import eventually
from tests.integration.shared_bench import (
    DEVICES,
    DIM,
    LEASE_MS,
    MAX_WAIT_MS,
    TASK,
    bench_of,
)
from tests.integration.shared_committee import mean_of, update_of


@pytest.mark.slow
@pytest.mark.parametrize("ticks", range(6))
async def test_a_round_survives_the_death_of_its_leader_and_of_a_holder(
    tmp_path: Path, redis_url: str, ticks: int
) -> None:
    """(2, 5): four holders are a quorum and open the checks, two open the sum."""
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=5) as bench:
        dead, heir = bench.process("a"), bench.process("b")
        await bench.collected(dead)
        for _ in range(ticks):
            await dead.driver.tick()
        await bench.holders.stop(1 + ticks % 5)
        await dead.phases.close()
        await bench.advance(LEASE_MS + 1)
        for _ in range(3):
            await bench.drive(heir)
        await bench.published()
        assert (await bench.round()).number == 2
        assert await bench.blobs.list("updates") == []


@pytest.mark.slow
async def test_phases_come_in_order_and_nothing_is_asked_twice(
    tmp_path: Path, redis_url: str
) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await process.tick_until_idle()
        await bench.published()
        assert process.observer.phases[1:7] == [
            Phase.COLLECTING,
            Phase.FREEZING,
            Phase.CHECKING,
            Phase.AGGREGATING,
            Phase.VALIDATING,
            Phase.PUBLISHED,
        ]
        relayed = process.observer.relayed
        assert sorted(relayed) == sorted(
            (holder, "stored") for holder in (1, 2, 3) for _ in DEVICES
        )
        assert len(set(process.observer.statements)) == len(process.observer.statements)


@pytest.mark.slow
async def test_a_holder_that_comes_back_gets_what_it_missed(tmp_path: Path, redis_url: str) -> None:
    """(3, 5): four holders freeze the set, but all five must open the checks."""
    async with bench_of(tmp_path, redis_url, threshold=3, num_holders=5) as bench:
        process = bench.process("a")
        await bench.collected(process)
        assert await process.driver.tick()  # the goal is reached
        assert (await bench.round()).phase is Phase.FREEZING
        await bench.holders.stop(4)
        await bench.drive(process)
        assert (await bench.round()).phase is Phase.CHECKING
        await bench.holders.start(4)

        async def over() -> bool | None:
            await process.driver.tick()
            return (await bench.round()).number == 2 or None

        assert await eventually(over)
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.holders == (1, 2, 3, 4, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degraded", "reason", "mode"),
    [
        ("wait", "checks_failed", ""),
        ("abort", "checks_failed", ""),
        ("unchecked", "", "degraded_unchecked"),
        ("grouped", "checks_failed", ""),  # four updates make no group of eight
    ],
)
async def test_too_few_holders_for_the_checks_end_as_configured(
    tmp_path: Path, redis_url: str, degraded: str, reason: str, mode: str
) -> None:
    async with bench_of(
        tmp_path, redis_url, threshold=3, num_holders=5, degraded=degraded
    ) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await process.driver.tick()
        await bench.holders.stop(2)
        for _ in range(3):
            await bench.drive(process)
        if degraded in {"wait", "grouped"}:
            assert (await bench.round()).phase is Phase.CHECKING
            await bench.drive(process, ms=MAX_WAIT_MS)
        (record,) = process.observer.finished
        assert record.reason.partition(":")[0] == reason
        assert record.shared is not None
        assert record.shared.mode == mode
        if mode:
            await bench.published()


@pytest.mark.slow
async def test_a_device_that_one_holder_refuses_is_left_out_on_that_holders_word(
    tmp_path: Path, redis_url: str
) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        params = await bench.select(process)
        for device in DEVICES:
            bundle = bytearray(bench.holders.sealed(params, device, update_of(device, DIM)))
            if device == "d2":
                bundle[-1] ^= 1  # the last byte of the last holder's body
            await bench.admit(device, bytes(bundle))
        await process.tick_until_idle()
        await bench.published(("d1", "d3", "d4"))
        (record,) = process.observer.finished
        assert record.shared is not None
        # It is one holder's word alone.
        assert record.shared.excluded == (("d2", "refused-by-holder-3"),)
        assert record.excluded == 1


@pytest.mark.slow
async def test_a_payload_that_is_gone_costs_one_device_only(tmp_path: Path, redis_url: str) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await bench.client.command("HDEL", f"{task_prefix(TASK)}payloads:1", "d3")
        await process.tick_until_idle()
        await bench.published(("d1", "d2", "d4"))
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.excluded == (("d3", "PAYLOAD_GONE"),)


@pytest.mark.slow
async def test_a_set_that_a_dead_leader_proposed_gives_way_to_a_higher_attempt(
    tmp_path: Path, redis_url: str
) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        await bench.collected(process)
        assert await process.driver.tick()
        session = process.phases._session(await bench.round())
        ready = await session.relay_all()
        members = [
            pb.Member(device_id=device, header_sha256=sha256)
            for device, sha256 in session.relay.common(ready)[:3]
        ]
        request = pb.FreezeRequest(params_sha256=session.params.sha256, attempt=1, members=members)
        address = bench.holders.committee.identity(2).address
        async with grpc.aio.insecure_channel(address) as channel:
            await ShareHolderStub(channel).Freeze(request)
        await process.tick_until_idle()
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.attempt == 2


@pytest.mark.slow
async def test_a_round_that_holders_refuse_is_abandoned_before_devices_work_for_it(
    tmp_path: Path, redis_url: str
) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        bench.task = bench.task.model_copy(
            update={"sharing": bench.task.sharing.model_copy(update={"quorum": 2})}
        )
        process = bench.process("a")
        await bench.select(process)
        for _ in range(200):
            await process.driver.tick()
            if process.observer.finished:
                break
            await asyncio.sleep(0)
        (record,) = process.observer.finished
        assert record.reason.startswith("refused_by_holders: 3 share holders refuse")
        assert "WEAKER_THAN_POLICY" in record.reason


@pytest.mark.slow
async def test_a_holder_that_lies_about_a_sum_is_corrected_and_named(
    tmp_path: Path, redis_url: str
) -> None:
    """(2, 5): a wrong share among five is one that two right ones do not explain."""
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=5) as bench:
        process = bench.process("a")
        await bench.collected(process)
        liar = process.pool._clients[3]
        truth = liar.release_sum

        async def lie(
            request: pb.ReleaseSumRequest, *, num_bytes: int
        ) -> tuple[round_pb.SignedStatement, bytes]:
            signed, data = await truth(request, num_bytes=num_bytes)
            wrong = bytes([data[0] ^ 1]) + data[1:]
            statement = round_pb.HolderStatement.FromString(signed.statement)
            statement.sum.data_sha256 = hashlib.sha256(wrong).digest()
            return sign_statement(bench.holders.secrets[2], statement), wrong

        liar.release_sum = lie  # type: ignore[method-assign]
        await process.tick_until_idle()
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.liars == (3,)


@pytest.mark.slow
async def test_a_holder_that_lies_about_a_member_costs_nobody_his_place(
    tmp_path: Path, redis_url: str
) -> None:
    """(2, 5): whether the device or the holder is wrong cannot be told; the others do without."""
    async with bench_of(
        tmp_path, redis_url, threshold=2, num_holders=5, format="shamir-seeded"
    ) as bench:
        process = bench.process("a")
        await bench.collected(process)
        liar = process.pool._clients[3]
        truth = liar.open_checks

        async def lie(request: pb.OpenChecksRequest) -> round_pb.SignedStatement:
            signed = await truth(request)
            said = round_pb.HolderStatement.FromString(signed.statement)
            words = bytearray(said.openings.consistency)
            words[0] ^= 1
            said.openings.consistency = bytes(words)
            return sign_statement(bench.holders.secrets[2], said)

        liar.open_checks = lie  # type: ignore[method-assign]
        await process.tick_until_idle()
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.excluded == ()
        assert (record.shared.disputed, record.shared.liars) == ((3,), ())


@pytest.mark.slow
async def test_a_new_leader_goes_on_with_the_box_that_a_holder_is_locked_to(
    tmp_path: Path, redis_url: str
) -> None:
    """(2, 5): the votes of a holder that is gone since then are in the box for good."""
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=5) as bench:
        dead, heir = bench.process("a"), bench.process("b")
        await bench.collected(dead)

        async def away(request: pb.LockBoxRequest) -> round_pb.SignedStatement:
            del request
            raise HolderAway("it does not answer")

        for index in (2, 3, 4, 5):
            dead.pool._clients[index].lock_box = away  # type: ignore[method-assign]
        for _ in range(3):
            await dead.driver.tick()
        assert (await bench.round()).phase is Phase.CHECKING
        assert [kind for _, kind in dead.observer.statements].count("lock") == 1
        await bench.holders.stop(5)
        await dead.phases.close()
        await bench.advance(LEASE_MS + 1)
        for _ in range(3):
            await bench.drive(heir)
        await bench.published()
        (record,) = heir.observer.finished
        assert record.shared is not None
        assert record.shared.holders == (1, 2, 3, 4)


@pytest.mark.slow
async def test_a_statement_that_its_holder_did_not_sign_is_not_believed(
    tmp_path: Path, redis_url: str
) -> None:
    """(2, 5): the four others are a quorum."""
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=5) as bench:
        process = bench.process("a")
        await bench.collected(process)
        forger = process.pool._clients[3]
        truth = forger.freeze

        async def forge(request: pb.FreezeRequest) -> round_pb.SignedStatement:
            signed = await truth(request)
            return round_pb.SignedStatement(statement=signed.statement, signature=bytes(64))

        forger.freeze = forge  # type: ignore[method-assign]
        for _ in range(3):
            await bench.drive(process)
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.holders == (1, 2, 4, 5)
        assert (3, "vote") not in process.observer.statements


@pytest.mark.slow
async def test_stale_updates_are_admitted_within_bounds_and_weigh_less(
    tmp_path: Path, redis_url: str
) -> None:
    settings: dict[str, Any] = {"max-staleness": 1}
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3, **settings) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await process.tick_until_idle()
        params = await bench.select(process, check_in_id="c2")
        assert (params.base_version, params.staleness_weights) == (2, (8, 6))
        updates = {device: update_of(device, DIM) for device in DEVICES}
        for device, vector in updates.items():
            version = 1 if device == "d3" else 2
            bundle = bench.holders.sealed(params, device, vector, model_version=version)
            verdict = await bench.admit(device, bundle, round_number=2, model_version=version)
            assert verdict is AdmissionVerdict.ACCEPTED
        await process.tick_until_idle()
        weights = dict.fromkeys(DEVICES, 8) | {"d3": 6}
        np.testing.assert_allclose(
            await bench.step(3), mean_of(updates, weights), rtol=0, atol=1e-7
        )


@pytest.mark.slow
async def test_purged_holders_keep_no_share(tmp_path: Path, redis_url: str) -> None:
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        await bench.collected(process)
        params = await bench.params()
        await process.tick_until_idle()
        address = bench.holders.committee.identity(1).address
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ShareHolderStub(channel).Freeze(
                    pb.FreezeRequest(
                        params_sha256=params.sha256,
                        attempt=9,
                        members=[
                            pb.Member(device_id=device, header_sha256=bytes(32))
                            for device in ("d1", "d2")
                        ],
                    )
                )
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
