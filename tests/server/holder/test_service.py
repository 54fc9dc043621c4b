"""Whole rounds with real holders over gRPC, real seals and real signatures."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.secret_sharing import fixed_point
from security.secret_sharing.field import MersenneField, Words
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.server.holder.conversation import Conversation, plain_sum
from tests.server.holder.rig import (
    DIM,
    Bundle,
    Rig,
    expected_sum,
    reason_of,
    round_parameters,
    update_of,
)

NAMES = ("anna", "berta", "carla", "dora")


@pytest.mark.parametrize(
    ("threshold", "holders", "share_format", "checks"),
    [
        (2, 3, ShareFormat.SHAMIR_SEEDED, Checks.SUM),
        (2, 3, ShareFormat.CNF_SEEDED, Checks.NORM),
        (2, 3, ShareFormat.SHAMIR_SEEDED, Checks.DISTANCES),
        (3, 5, ShareFormat.SHAMIR_SEEDED, Checks.DISTANCES),
        (3, 5, ShareFormat.CNF_SEEDED, Checks.DISTANCES),
    ],
)
async def test_a_round_opens_the_sum_of_its_updates(
    tmp_path: Path, threshold: int, holders: int, share_format: ShareFormat, checks: Checks
) -> None:
    async with Rig(tmp_path, threshold, holders) as rig:
        params = round_parameters(rig.committee, format=share_format, checks=checks)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        await rig.store(bundles)
        talk = Conversation(rig, params, bundles)
        await talk.run_to_commitments()
        selection = talk.selection()
        assert selection.sums == ((0, 1, 2, 3),)
        opened = await talk.open_sum(selection, rig.indices)
        assert opened.liars == ()
        wanted = expected_sum(params, {name: update_of(name) for name in NAMES}, {})
        np.testing.assert_array_equal(plain_sum(opened), wanted)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, 2, 3) as running:
        yield running


async def stored_round(rig: Rig, **changes: Any) -> tuple[RoundParameters, list[Bundle]]:
    params = round_parameters(rig.committee, **changes)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    return params, bundles


async def test_every_answer_is_the_same_bytes_again_also_after_a_restart(rig: Rig) -> None:
    params, bundles = await stored_round(rig, checks=Checks.DISTANCES)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    selection = talk.selection()
    released = await rig.release(talk.release(selection), 1)
    listed = await rig.stubs[1].ListShares(pb.ListSharesRequest(params_sha256=params.sha256))
    dealt = await rig.stubs[1].DealKeys(pb.DealKeysRequest())
    await rig.restart(1)
    stub = rig.stubs[1]
    assert await stub.Freeze(talk.freeze) == talk.votes[0]
    assert await stub.LockBox(talk.lock) == talk.locks[0]
    assert await stub.RevealCoin(talk.reveal) == talk.coins[0]
    assert await stub.OpenChecks(talk.check) == talk.openings[0]
    assert await stub.Commit(talk.commit()) == talk.commitments[0]
    assert await rig.release(talk.release(selection), 1) == released
    assert await stub.ListShares(pb.ListSharesRequest(params_sha256=params.sha256)) == listed
    assert await stub.DealKeys(pb.DealKeysRequest()) == dealt
    again = await stub.StoreShares(
        pb.StoreSharesRequest(shares=[bundle.inline(1) for bundle in bundles])
    )
    assert [outcome.receipt for outcome in again.outcomes] == list(listed.receipts)


async def test_a_sum_share_that_was_lost_is_computed_again(rig: Rig) -> None:
    params, bundles = await stored_round(rig)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    before = await rig.release(talk.release(talk.selection()), 1)
    (rig.folder / "data-1" / "sums" / params.sha256.hex()).unlink()
    assert await rig.release(talk.release(talk.selection()), 1) == before


async def test_large_bodies_are_streamed_into_files_that_a_purge_deletes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    rig.limits = {"inline-max-bytes": 1024}
    async with rig:
        params = round_parameters(rig.committee, dim=40_000, format=ShareFormat.SHAMIR_SEEDED)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        for bundle in bundles:
            for index in rig.indices:
                parts = bundle.stream(index, piece_bytes=100_000)
                first = await rig.stubs[index].StoreShare(iter(parts))
                assert await rig.stubs[index].StoreShare(iter(parts)) == first
        files = [files_in(tmp_path, f"data-{index}/bodies/*") for index in rig.indices]
        assert files == [0, len(NAMES), len(NAMES)]
        await rig.restart(2)
        talk = Conversation(rig, params, bundles)
        await talk.run_to_commitments()
        opened = await talk.open_sum(talk.selection(), (1, 2))
        wanted = expected_sum(params, {name: update_of(name, 40_000) for name in NAMES}, {})
        np.testing.assert_array_equal(plain_sum(opened), wanted)
        await rig.ask("Purge", pb.PurgeRequest(params_sha256=params.sha256))
        assert files_in(tmp_path, "data-*/*/*") == 0


async def test_a_refused_stream_leaves_no_file(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    rig.limits = {"inline-max-bytes": 0}
    async with rig:
        params = round_parameters(rig.committee, format=ShareFormat.SHAMIR_SEEDED)
        await rig.open(params)
        parts = Bundle(params, rig.committee, "anna").stream(2, piece_bytes=50)
        with pytest.raises(grpc.aio.AioRpcError):
            await rig.stubs[2].StoreShare(iter(parts[:-1]))
        assert files_in(tmp_path, "data-2/bodies/*") == 0


async def test_a_holder_that_was_away_takes_on_the_commitment_of_the_others(
    tmp_path: Path,
) -> None:
    async with Rig(tmp_path, 2, 4, checks=["sum"]) as rig:
        params, bundles = await stored_round(rig)
        assert params.quorum == 3
        talk = Conversation(rig, params, bundles)
        present = (1, 2, 3)
        await talk.run_to_coins(present)
        await rig.ask("Freeze", talk.freeze, (4,))
        talk.commitments = await rig.ask("Commit", talk.commit(), present)
        opened = await talk.open_sum(talk.selection(), (3, 4))
        wanted = expected_sum(params, {name: update_of(name) for name in NAMES}, {})
        np.testing.assert_array_equal(plain_sum(opened), wanted)
        # It is bound now as if it had been there.
        assert rig.read(params, (await rig.ask("Commit", talk.commit(), (4,)))[0]).commitment == (
            rig.read(params, talk.commitments[0]).commitment
        )


async def test_stale_updates_weigh_less(rig: Rig) -> None:
    params = round_parameters(rig.committee, staleness_weights=(3, 1))
    await rig.open(params)
    versions = dict(zip(NAMES, (5, 5, 4, 4), strict=True))
    bundles = [
        Bundle(params, rig.committee, name, model_version=version)
        for name, version in versions.items()
    ]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    statement, _ = await rig.release(talk.release(talk.selection()), 1)
    assert rig.read(params, statement).sum.num_sums == 1
    opened = await talk.open_sum(talk.selection(), rig.indices, weight=8)
    weights = {name: 3 if version == 5 else 1 for name, version in versions.items()}
    wanted = expected_sum(params, {name: update_of(name) for name in NAMES}, weights)
    np.testing.assert_array_equal(plain_sum(opened), wanted)


async def test_groups_are_summed_apart_where_products_cannot_be_opened(tmp_path: Path) -> None:
    async with Rig(tmp_path, 2, 3, **{"assume-honest-holders": True}) as rig:
        params, bundles = await stored_round(
            rig, checks=Checks.NORM, degraded=Degraded.GROUPED, group_size=2, quorum=2
        )
        talk = Conversation(rig, params, bundles)
        await talk.run_to_openings()
        mode = SelectionMode.DEGRADED_GROUPED
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.ask("Commit", talk.commit(mode))
        assert reason_of(error.value) == "EVIDENCE_INSUFFICIENT"  # the full checks can be opened
        # One holder is gone for good: two of three open what is linear and nothing else.
        talk.openings = talk.openings[:2]
        talk.commitments = await rig.ask("Commit", talk.commit(mode))
        selection = talk.selection(mode)
        assert sorted(map(len, selection.sums)) == [2, 2]
        opened = await talk.open_sum(selection, (1, 2))
        for members, total in zip(selection.sums, opened.sums, strict=True):
            vectors = {NAMES[at]: update_of(NAMES[at]) for at in members}
            np.testing.assert_array_equal(total, expected_sum(params, vectors, {}))


async def test_a_round_that_its_coordinator_forgot_is_purged_in_the_end(rig: Rig) -> None:
    params, bundles = await stored_round(rig)
    talk = Conversation(rig, params, bundles)
    rig.now_s += 8 * 86_400
    later = round_parameters(rig.committee, round=2)
    await rig.open(later)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.stubs[1].Freeze(talk.freeze)
    assert reason_of(error.value) == "ROUND_PURGED"


async def test_a_holder_tells_who_it_is(rig: Rig) -> None:
    described = await rig.stubs[2].Describe(pb.DescribeRequest())
    assert described.holder == 2
    assert described.committee_sha256 == rig.committee.sha256
    assert described.has_keys


async def test_metrics_count_shares_by_outcome(rig: Rig) -> None:
    await stored_round(rig)
    value = rig.servers[1].registry.get_sample_value
    assert value("federated_holder_shares_stored_total") == len(NAMES)


async def test_a_member_that_goes_around_the_field_is_blamed_by_every_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Rig(tmp_path, 2, 3) as rig:
        params = round_parameters(rig.committee, checks=Checks.NORM)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES[:3]]
        with monkeypatch.context() as patch:
            # Four halves: their squares add 1 to the norm, mod p.
            patch.setattr(fixed_point, "encode", halves_added(fixed_point.encode))
            bundles.append(Bundle(params, rig.committee, NAMES[3]))
        await rig.store(bundles)
        talk = Conversation(rig, params, bundles)
        await talk.run_to_openings()
        assert talk.verdict().suspects == (0, 1, 2, 3)
        talk.blames = await rig.ask("OpenBlame", talk.blame)
        talk.commitments = await rig.ask("Commit", talk.commit())
        assert talk.selection().sums == ((0, 1, 2),)
        opened = await talk.open_sum(talk.selection(), rig.indices)
        wanted = expected_sum(params, {name: update_of(name) for name in NAMES[:3]}, {})
        np.testing.assert_array_equal(plain_sum(opened), wanted)


def files_in(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


def halves_added(encode: Callable[..., Words]) -> Callable[..., Words]:
    def attack(values: np.ndarray, *, fraction_bits: int, field: MersenneField) -> Words:
        words: Words = encode(values, fraction_bits=fraction_bits, field=field)
        if len(words) == DIM:
            words[:4] = (words[:4] + np.uint64((field.modulus + 1) // 2)) % field.modulus
        return words

    return attack
