"""Noise that holders deal: in every sum, the round's own, and never less than the round asks."""

import math
from collections.abc import AsyncIterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import MalformedMessageError
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import reconstruct
from security.shared_round.keys.dealers import DealerSigner, verify_dealer
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameter_fields import CHUNK_BYTES, TAG_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import SharePieces, open_frame
from security.shared_round.update.sealed_noise import SealedNoise
from tests.server.holder.conversation import Conversation, plain_sum
from tests.server.holder.rig import (
    Bundle,
    DealtNoise,
    Rig,
    expected_sum,
    reason_of,
    round_parameters,
    update_of,
)

NAMES = ("anna", "berta", "carla", "dora")
# Large enough for a sample variance within a few percent, small enough for a fast test.
LONG = 4096


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, 2, 3) as running:
        yield running


async def noised_round(
    rig: Rig, **changes: Any
) -> tuple[RoundParameters, list[Bundle], list[DealtNoise]]:
    """A round of which every holder has every update and every dealer's noise."""
    params = round_parameters(rig.committee, **({"noise_multiplier": 1.0} | changes))
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    dealt = [await rig.deal(params, index) for index in rig.indices]
    await rig.store([*bundles, *dealt])
    return params, bundles, dealt


def noise_in(rig: Rig, params: RoundParameters, dealt: DealtNoise) -> np.ndarray:
    """What one dealer dealt, opened with the keys of all holders."""
    shares = {}
    for holder, secrets in enumerate(rig.secrets, start=1):
        start, body = dealt.start(holder), dealt.body(holder)
        header = verify_dealer(start.header, rig.committee)
        keys = open_frame(params, secrets, holder, header, start.frame)
        step = CHUNK_BYTES + TAG_BYTES
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        read = chunks.__getitem__ if params.has_body(holder) else None
        words = [part.copy() for _, part in SharePieces(params, keys, holder, read).chunks()]
        shares[holder] = np.concatenate(words)
    opened = reconstruct(
        params.field, shares, degree=params.threshold - 1, scale=params.sharing.share_scale
    )
    noise: np.ndarray = centered(opened.values, params.field)[: params.dim]
    return noise


async def opened_sum(talk: Conversation) -> np.ndarray:
    await talk.run_to_commitments()
    return plain_sum(await talk.open_sum(talk.selection(), talk.rig.indices))


def exact_sum(params: RoundParameters) -> np.ndarray:
    return expected_sum(params, {name: update_of(name, params.dim) for name in NAMES}, {})


def is_stddev(values: np.ndarray, wanted: float) -> bool:
    """Whether a sample's deviation is the wanted one, within five standard errors.

    Holders draw from the machine's secure source: an honest one fails once in a million.
    """
    found = float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
    return abs(found / wanted - 1) < 5 / math.sqrt(2 * len(values))


@pytest.mark.parametrize(
    ("threshold", "holders", "share_format", "checks"),
    [
        (2, 3, ShareFormat.SHAMIR_SEEDED, Checks.SUM),
        (2, 3, ShareFormat.CNF_SEEDED, Checks.NORM),
        (3, 5, ShareFormat.SHAMIR_SEEDED, Checks.DISTANCES),
        (3, 5, ShareFormat.CNF_SEEDED, Checks.SUM),
    ],
)
async def test_a_round_opens_its_sum_with_the_frozen_dealers_noise(
    tmp_path: Path, threshold: int, holders: int, share_format: ShareFormat, checks: Checks
) -> None:
    async with Rig(tmp_path, threshold, holders) as rig:
        params, bundles, dealt = await noised_round(rig, format=share_format, checks=checks)
        dealers = dealt[: params.noise_dealers]
        talk = Conversation(rig, params, bundles, dealers=dealers)
        opened = await opened_sum(talk)
        noise = sum(noise_in(rig, params, each) for each in dealers)
        np.testing.assert_array_equal(opened, exact_sum(params) + noise)


async def test_colluding_dealers_cannot_take_out_more_than_their_own(tmp_path: Path) -> None:
    async with Rig(tmp_path, 3, 5) as rig:
        params, bundles, dealt = await noised_round(rig, dim=LONG, noise_multiplier=2.0)
        assert params.noise_dealers == 4
        dealers = dealt[:4]
        talk = Conversation(rig, params, bundles, dealers=dealers)
        left = await opened_sum(talk) - exact_sum(params)
        asked = 2.0 * params.norm_bound
        for colluding in range(3):
            wanted = params.noise_stddev * np.sqrt(4 - colluding)
            assert is_stddev(left, wanted)
            # The test would notice a seventh too little.
            assert not is_stddev(0.85 * left, wanted)
            # t - 1 = 2 of them leave what the round asks for.
            assert wanted >= asked
            left = left - noise_in(rig, params, dealers[colluding])
        # One more than the threshold allows leaves less.
        assert params.noise_stddev < asked


async def test_dealers_draw_independently(rig: Rig) -> None:
    params, _, dealt = await noised_round(rig, dim=LONG)
    drawn = [noise_in(rig, params, each).astype(np.float64) for each in dealt]
    for noise in drawn:
        assert is_stddev(noise, params.noise_stddev)
        assert abs(float(noise.mean())) < 5 * params.noise_stddev / np.sqrt(LONG)
    for one, other in combinations(drawn, 2):
        correlation = float(one @ other) / (LONG * params.noise_stddev**2)
        assert abs(correlation) < 5 / np.sqrt(LONG)


async def test_noise_is_dealt_once_also_after_a_restart(rig: Rig) -> None:
    params, bundles, dealt = await noised_round(rig)
    await rig.restart(1)
    assert (await rig.deal(params, 1)).header_sha256 == dealt[0].header_sha256
    # Also when the set is frozen, and to the end.
    talk = Conversation(rig, params, bundles, dealers=dealt)
    await opened_sum(talk)
    assert (await rig.deal(params, 1)).header_sha256 == dealt[0].header_sha256


async def test_noise_of_another_round_is_another(rig: Rig) -> None:
    first = round_parameters(rig.committee, noise_multiplier=1.0)
    second = round_parameters(rig.committee, noise_multiplier=1.0, round=2)
    for params in (first, second):
        await rig.open(params)
    one, other = [noise_in(rig, each, await rig.deal(each, 1)) for each in (first, second)]
    assert not np.array_equal(one, other)


async def test_a_purge_deletes_the_noise_and_no_more_is_dealt(rig: Rig, tmp_path: Path) -> None:
    params, _, _ = await noised_round(rig)
    files = tmp_path / "data-1" / "noise"
    assert [path.name for path in files.iterdir()] == [params.sha256.hex()]
    await rig.ask("Purge", pb.PurgeRequest(params_sha256=params.sha256))
    assert not list(files.iterdir())
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.deal(params, 1)
    assert reason_of(error.value) == "ROUND_PURGED"


async def test_noise_that_a_crash_left_over_is_swept(rig: Rig, tmp_path: Path) -> None:
    params, _, dealt = await noised_round(rig)
    left_over = tmp_path / "data-1" / "noise" / "ff.tmp"
    left_over.write_bytes(b"half")
    await rig.restart(1)
    assert not left_over.exists()
    assert (await rig.deal(params, 1)).header_sha256 == dealt[0].header_sha256


async def test_a_round_without_noise_gets_none(rig: Rig) -> None:
    params = round_parameters(rig.committee)
    await rig.open(params)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.deal(params, 1)
    assert reason_of(error.value) == "MALFORMED_REQUEST"


async def test_nothing_is_dealt_when_the_round_takes_no_more_shares(rig: Rig) -> None:
    params = round_parameters(rig.committee, noise_multiplier=1.0, quorum=2)
    rig.policy["assume-honest-holders"] = True
    for index in rig.indices:
        await rig.restart(index)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    dealt = [await rig.deal(params, index) for index in (1, 2)]
    await rig.store([*bundles, *dealt])
    await Conversation(rig, params, bundles, dealers=dealt).run_to_openings()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.deal(params, 3)
    assert reason_of(error.value) == "ROUND_CLOSED"


def forged(
    rig: Rig, params: RoundParameters, holder: int, *, by: int, scale: float = 0.0
) -> DealtNoise:
    """Noise in a holder's name, sealed and signed by another, and as much of it as one likes."""
    vector = np.full(params.dim, round(scale * params.noise_stddev), dtype=np.int64)
    signer = DealerSigner(holder=holder, secrets=rig.secrets[by - 1])
    return DealtNoise(params, SealedNoise(params, rig.committee, signer, vector)[:])


async def test_noise_in_another_holders_name_is_refused(rig: Rig) -> None:
    params = round_parameters(rig.committee, noise_multiplier=1.0)
    await rig.open(params)
    share = forged(rig, params, 2, by=1).inline(3)
    answer = await rig.stubs[3].StoreShares(pb.StoreSharesRequest(shares=[share]))
    assert answer.outcomes[0].error.message.startswith("the header of noise was not signed")


async def test_noise_is_taken_only_where_the_round_asks_for_it(rig: Rig) -> None:
    noised, plain = (
        round_parameters(rig.committee, noise_multiplier=1.0),
        round_parameters(rig.committee, round=2),
    )
    for params in (noised, plain):
        await rig.open(params)
    share = (await rig.deal(noised, 1)).inline(2)
    share.start.params_sha256 = plain.sha256
    answer = await rig.stubs[2].StoreShares(pb.StoreSharesRequest(shares=[share]))
    assert "without a device's certificate" in answer.outcomes[0].error.message


async def refused_vote(rig: Rig, request: pb.FreezeRequest) -> set[str]:
    reasons = set()
    for stub in rig.stubs.values():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Freeze(request)
        reasons.add(reason_of(error.value))
    return reasons


def proposed(
    params: RoundParameters, members: Sequence[pb.Member], dealers: Sequence[pb.Member]
) -> pb.FreezeRequest:
    return pb.FreezeRequest(
        params_sha256=params.sha256, attempt=1, members=members, dealers=dealers
    )


async def test_a_coordinator_cannot_freeze_less_or_other_noise(tmp_path: Path) -> None:
    async with Rig(tmp_path, 3, 5) as rig:
        params, bundles, dealt = await noised_round(rig)
        members = sorted((each.member for each in bundles), key=lambda each: each.device_id)
        noise = [each.member for each in dealt]
        foreign = pb.Member(device_id="noise:7", header_sha256=noise[0].header_sha256)
        device = members.pop()
        malformed = [
            [],  # none
            noise[:3],  # fewer than asked for
            noise,  # more: the round's parameters are what everybody agreed to
            [*noise[:3], noise[2]],  # one twice
            [noise[1], noise[0], *noise[2:4]],  # out of order
            [*members[:1], *noise[:3]],  # a device's update in the place of noise
        ]
        for dealers in malformed:
            reasons = await refused_vote(rig, proposed(params, members, dealers))
            assert reasons == {"MALFORMED_REQUEST"}, dealers
        # One that is no holder's, or that nobody dealt.
        missing = await refused_vote(rig, proposed(params, members, [*noise[:3], foreign]))
        assert missing == {"SHARE_MISSING"}
        # Noise as a member would make a sum of fewer updates than it must hold.
        as_member = sorted([*members, noise[4]], key=lambda each: each.device_id)
        reasons = await refused_vote(rig, proposed(params, as_member, noise[:4]))
        assert reasons == {"MALFORMED_REQUEST"}
        # The real one is voted for after all that.
        fine = proposed(params, [*members, device], noise[:4])
        assert len(await rig.ask("Freeze", fine)) == 5


async def test_a_coordinator_cannot_replay_another_rounds_noise(rig: Rig) -> None:
    first, _, old = await noised_round(rig)
    second = round_parameters(rig.committee, noise_multiplier=1.0, round=2)
    await rig.open(second)
    bundles = [Bundle(second, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    for each in old:
        share = each.inline(1)
        share.start.params_sha256 = second.sha256
        answer = await rig.stubs[1].StoreShares(pb.StoreSharesRequest(shares=[share]))
        assert answer.outcomes[0].WhichOneof("outcome") == "error"
    members = [each.member for each in bundles]
    reasons = await refused_vote(rig, proposed(second, members, [each.member for each in old]))
    assert reasons == {"SHARE_MISSING"}
    assert first.noise_dealers == len(old)


async def test_a_dealer_cannot_deal_twice(rig: Rig) -> None:
    params, bundles, dealt = await noised_round(rig)
    second = forged(rig, params, 1, by=1)  # by its own key: nothing is forged but the intention
    answer = await rig.stubs[2].StoreShares(pb.StoreSharesRequest(shares=[second.inline(2)]))
    assert "under another header" in answer.outcomes[0].error.message
    noise = [second.member, *(each.member for each in dealt[1:])]
    request = proposed(params, [each.member for each in bundles], noise)
    assert await refused_vote(rig, request) == {"SHARE_CONFLICT"}


async def test_no_sum_is_released_without_the_frozen_dealers(rig: Rig) -> None:
    params, bundles, dealt = await noised_round(rig)
    talk = Conversation(rig, params, bundles, dealers=dealt)
    await talk.run_to_commitments()
    selection = talk.selection()
    # The same members without noise, or with fewer dealers, are another set: nobody froze it.
    for dealers in ([], dealt[:2]):
        other = Conversation(rig, params, bundles, dealers=dealers)
        request = talk.release(selection)
        request.set_sha256 = other.frozen.sha256
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.release(request, 1)
        assert reason_of(error.value) == "NOT_FROZEN"
    # Several sums would hold the same noise: their difference would hold none.
    request = talk.release(selection)
    del request.sums[:]
    request.sums.extend([pb.SumMembers(members=[0, 1]), pb.SumMembers(members=[2, 3])])
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.release(request, 1)
    assert reason_of(error.value) == "MALFORMED_REQUEST"


async def test_a_holder_that_lacks_noise_neither_votes_nor_releases(tmp_path: Path) -> None:
    async with Rig(tmp_path, 2, 4, checks=["sum"]) as rig:
        params = round_parameters(rig.committee, noise_multiplier=1.0)
        assert (params.quorum, params.noise_dealers) == (3, 3)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        dealt = [await rig.deal(params, index) for index in (1, 2, 3)]
        await rig.store(bundles)
        await rig.store(dealt, at=(1, 2, 3))
        talk = Conversation(rig, params, bundles, dealers=dealt)
        await talk.run_to_coins((1, 2, 3))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.stubs[4].Freeze(talk.freeze)
        assert reason_of(error.value) == "SHARE_MISSING"
        talk.commitments = await rig.ask("Commit", talk.commit(), (1, 2, 3))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.release(talk.release(talk.selection()), 4)
        assert reason_of(error.value) == "NOT_FROZEN"
        # It gets the noise, and everything it missed, without the dealers.
        await rig.stop(1)
        await rig.store(dealt, at=(4,))
        await rig.stubs[4].Freeze(talk.freeze)
        opened = await talk.open_sum(talk.selection(), (3, 4))
        noise = sum(noise_in(rig, params, each) for each in dealt)
        np.testing.assert_array_equal(plain_sum(opened), exact_sum(params) + noise)


async def test_noise_beyond_all_likelihood_ends_the_round_loudly(rig: Rig) -> None:
    params = round_parameters(rig.committee, noise_multiplier=1.0)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    dealt = [await rig.deal(params, 1), await rig.deal(params, 2)]
    dealt.append(forged(rig, params, 3, by=3, scale=30.0))
    await rig.store([*bundles, *dealt])
    talk = Conversation(rig, params, bundles, dealers=dealt)
    with pytest.raises(ValueError, match="a share is wrong"):
        await opened_sum(talk)


@pytest.mark.parametrize("share_format", list(ShareFormat))
async def test_large_noise_travels_in_files(tmp_path: Path, share_format: ShareFormat) -> None:
    rig = Rig(tmp_path, 2, 3)
    rig.limits = {"inline-max-bytes": 1024}
    async with rig:
        params = round_parameters(
            rig.committee, noise_multiplier=1.0, dim=40_000, format=share_format
        )
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        dealt = [await rig.deal(params, index) for index in rig.indices]
        for each in (*bundles, *dealt):
            for index in rig.indices:
                await rig.stubs[index].StoreShare(iter(each.stream(index)))
        opened = await opened_sum(Conversation(rig, params, bundles, dealers=dealt))
        noise = sum(noise_in(rig, params, each) for each in dealt)
        np.testing.assert_array_equal(opened, exact_sum(params) + noise)


def test_a_conversation_cannot_name_a_device_as_a_dealer(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    params = round_parameters(rig.committee, noise_multiplier=1.0)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    with pytest.raises(MalformedMessageError):
        Conversation(rig, params, bundles, dealers=bundles[:3])


@pytest.mark.parametrize(
    ("demanded", "dealt", "is_taken"),
    [(0.0, 0.0, True), (1.0, 1.0, True), (1.0, 1.5, True), (1.0, 0.99, False), (0.1, 0.0, False)],
)
async def test_a_holder_refuses_rounds_with_less_noise_than_its_policy(
    tmp_path: Path, demanded: float, dealt: float, is_taken: bool
) -> None:
    async with Rig(tmp_path, 2, 3, **{"min-noise-multiplier": demanded}) as rig:
        params = round_parameters(rig.committee, noise_multiplier=dealt)
        request = pb.OpenRoundRequest(parameters=params.to_bytes())
        if is_taken:
            assert (await rig.stubs[1].OpenRound(request)).params_sha256 == params.sha256
            return
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.stubs[1].OpenRound(request)
        assert reason_of(error.value) == "WEAKER_THAN_POLICY"
