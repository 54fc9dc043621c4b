"""What a holder refuses, each with its own reason, over gRPC."""

import hashlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.certificates.credentials import create_authority
from security.shared_round.keys.holder_keys import seal_to
from security.shared_round.keys.signing import sign_statement
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.member_set import Selection, SelectionMode
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.sealing import ChunkCipher, frame_info
from tests.server.holder.conversation import Conversation
from tests.server.holder.rig import NOW_S, Bundle, Rig, reason_of, round_parameters, signer

NAMES = ("anna", "berta", "carla", "dora")
# The holder with a body in a shamir-seeded round of (2, 3); holder 1 has a seed alone.
SEED, BODY = 1, 2


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, 2, 3) as running:
        yield running


@pytest.fixture
async def params(rig: Rig) -> RoundParameters:
    made = sum_round(rig)
    await rig.open(made)
    return made


def sum_round(rig: Rig, **changes: Any) -> RoundParameters:
    return round_parameters(rig.committee, **({"format": ShareFormat.SHAMIR_SEEDED} | changes))


async def refused(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason_of(error.value)


async def offered(rig: Rig, share: pb.InlineShare, at: int = BODY) -> str:
    """Reason for which a holder refuses a share; the same as a stream and in a batch."""
    answer = await rig.stubs[at].StoreShares(pb.StoreSharesRequest(shares=[share]))
    (outcome,) = answer.outcomes
    assert outcome.WhichOneof("outcome") == "error"
    parts = [pb.StoreShareRequest(start=share.start)]
    if share.body:
        parts.append(pb.StoreShareRequest(data=share.body))
    reason = await refused(rig.stubs[at].StoreShare(iter(parts)))
    assert reason == errors_pb2.ErrorReason.Name(outcome.error.reason)
    return reason


@pytest.mark.parametrize(
    "changes",
    [
        {"min_members": 2},
        {"degraded": Degraded.UNCHECKED},
        {"degraded": Degraded.GROUPED, "group_size": 2},
        {"checks": Checks.DISTANCES},
        {"quorum": 2},
        {"checks": Checks.NORM, "wrap_tests": 100},
        {"checks": Checks.NORM, "wrap_tests": 19},
        {"checks": Checks.NORM, "sketch_dim": 64},
    ],
)
async def test_a_round_with_less_protection_than_the_policy(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    policy = {"min-members": 3, "min-group-size": 3, "checks": ["sum", "norm"]}
    floors = {"min-wrap-tests": 20, "min-sketch-dim": 128}
    async with Rig(tmp_path, 2, 3, **policy, **floors) as rig:
        sizes = {"wrap_tests": 20, "sketch_dim": 128}
        await rig.open(sum_round(rig))
        await rig.open(sum_round(rig, round=3, checks=Checks.NORM, **sizes))
        weak = sum_round(rig, round=2, **(sizes | changes))
        request = pb.OpenRoundRequest(parameters=weak.to_bytes())
        assert await refused(rig.stubs[1].OpenRound(request)) == "WEAKER_THAN_POLICY"


async def test_a_round_of_another_committee(rig: Rig) -> None:
    foreign = sum_round(rig, committee_sha256=bytes(32))
    request = pb.OpenRoundRequest(parameters=foreign.to_bytes())
    assert await refused(rig.stubs[1].OpenRound(request)) == "WRONG_ROUND_PARAMETERS"


async def test_a_round_that_was_opened_otherwise(rig: Rig, params: RoundParameters) -> None:
    await rig.open(params)  # the same again is no conflict
    other = sum_round(rig, base_version=6)
    request = pb.OpenRoundRequest(parameters=other.to_bytes())
    assert await refused(rig.stubs[1].OpenRound(request)) == "PARAMETERS_CONFLICT"


async def test_garbage_for_parameters(rig: Rig) -> None:
    request = pb.OpenRoundRequest(parameters=b"garbage")
    assert await refused(rig.stubs[1].OpenRound(request)) == "MALFORMED_REQUEST"


async def test_more_rounds_than_the_holder_keeps(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    rig.limits = {"open-rounds": 1}
    async with rig:
        first = sum_round(rig)
        await rig.open(first)
        request = pb.OpenRoundRequest(parameters=sum_round(rig, round=2).to_bytes())
        assert await refused(rig.stubs[1].OpenRound(request)) == "OVERLOADED"
        await rig.stubs[1].Purge(pb.PurgeRequest(params_sha256=first.sha256))
        await rig.stubs[1].OpenRound(request)


async def test_a_share_for_a_round_that_was_not_opened(rig: Rig) -> None:
    share = Bundle(sum_round(rig), rig.committee, "anna").inline(BODY)
    assert await offered(rig, share) == "UNKNOWN_ROUND"


async def test_a_share_of_another_round(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(sum_round(rig, round=2), rig.committee, "anna").inline(BODY)
    share.start.params_sha256 = params.sha256
    assert await offered(rig, share) == "WRONG_ROUND_PARAMETERS"


async def test_a_forged_header(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    share.start.header.signature = bytes(64)
    assert await offered(rig, share) == "BAD_HEADER_SIGNATURE"


async def test_a_device_of_a_foreign_authority(rig: Rig, params: RoundParameters) -> None:
    foreign = create_authority(name="others", now_s=NOW_S, valid_for_s=1e6)
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    header = shared_pb.SharedHeader.FromString(share.start.header.header)
    share.start.header.CopyFrom(signer("anna", foreign).sign_header(header))
    assert await offered(rig, share) == "BAD_HEADER_SIGNATURE"


async def test_a_frame_of_another_holder(rig: Rig, params: RoundParameters) -> None:
    bundle = Bundle(params, rig.committee, "anna")
    share = bundle.inline(BODY)
    share.start.frame = bundle.start(3).frame
    assert await offered(rig, share) == "WRONG_HOLDER"


async def test_a_changed_body(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    share.body = bytes([share.body[0] ^ 1]) + share.body[1:]
    assert await offered(rig, share) == "SEAL_BROKEN"


async def test_a_changed_frame(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    share.start.frame = bytes([share.start.frame[0] ^ 1]) + share.start.frame[1:]
    assert await offered(rig, share) == "COMMITMENT_MISMATCH"


async def test_a_number_that_is_no_field_element(rig: Rig, params: RoundParameters) -> None:
    body = params.field.wire_dtype.type(params.field.modulus).tobytes() * params.length
    assert await offered(rig, sealed_by_hand(rig, params, body)) == "OUT_OF_RANGE_WORD"


async def test_a_body_of_another_length(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    share.start.body_bytes += 1
    assert await offered(rig, share) == "MALFORMED_REQUEST"


async def test_a_body_where_there_is_none(rig: Rig, params: RoundParameters) -> None:
    share = Bundle(params, rig.committee, "anna").inline(SEED)
    share.body = b"x"
    assert await offered(rig, share, at=SEED) == "MALFORMED_REQUEST"


async def test_an_update_that_is_too_stale(rig: Rig) -> None:
    params = sum_round(rig, staleness_weights=(2, 1))
    await rig.open(params)
    stale = sum_round(rig, staleness_weights=(2, 1, 1))
    share = Bundle(stale, rig.committee, "anna", model_version=3).inline(BODY)
    header = shared_pb.SharedHeader.FromString(share.start.header.header)
    header.params_sha256 = params.sha256
    share.start.params_sha256 = params.sha256
    share.start.header.CopyFrom(signer("anna").sign_header(header))
    assert await offered(rig, share) == "WRONG_ROUND_PARAMETERS"


async def test_a_second_update_of_a_device(rig: Rig, params: RoundParameters) -> None:
    await rig.store([Bundle(params, rig.committee, "anna")])
    share = Bundle(params, rig.committee, "anna").inline(BODY)
    assert await offered(rig, share) == "SHARE_CONFLICT"


async def test_a_stream_that_is_cut_off(rig: Rig, params: RoundParameters) -> None:
    parts = Bundle(params, rig.committee, "anna").stream(BODY, piece_bytes=50)
    assert await refused(rig.stubs[BODY].StoreShare(iter(parts[:-1]))) == "TRUNCATED_STREAM"
    assert await refused(rig.stubs[BODY].StoreShare(iter(parts[1:]))) == "MALFORMED_REQUEST"


async def test_a_set_with_a_share_that_is_missing_or_another(
    rig: Rig, params: RoundParameters
) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles[:3])
    talk = Conversation(rig, params, bundles)
    assert await refused(rig.stubs[1].Freeze(talk.freeze)) == "SHARE_MISSING"
    other = [Bundle(params, rig.committee, "anna"), *bundles[1:3]]
    talk = Conversation(rig, params, other)
    assert await refused(rig.stubs[1].Freeze(talk.freeze)) == "SHARE_CONFLICT"


async def test_a_set_out_of_order_or_too_small(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    backwards = pb.FreezeRequest(
        params_sha256=params.sha256, attempt=1, members=list(talk.freeze.members)[::-1]
    )
    few = pb.FreezeRequest(
        params_sha256=params.sha256, attempt=1, members=list(talk.freeze.members)[:2]
    )
    for request in (backwards, few):
        assert await refused(rig.stubs[1].Freeze(request)) == "MALFORMED_REQUEST"


async def test_a_set_of_too_many_is_refused_before_anything_else_of_it_is_looked_at(
    rig: Rig, params: RoundParameters
) -> None:
    many = [pb.Member(device_id="same", header_sha256=bytes(32))] * (params.max_members + 1)
    request = pb.FreezeRequest(params_sha256=params.sha256, attempt=1, members=many)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.stubs[1].Freeze(request)
    assert error.value.details() == "members=21 must be in 3..20"


async def test_steps_out_of_turn(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    selection = Selection(
        set_sha256=talk.frozen.sha256, mode=SelectionMode.CHECKED, sums=((0, 1, 2, 3),)
    )
    stub = rig.stubs[1]
    for call in (
        stub.LockBox(talk.lock),
        stub.RevealCoin(talk.reveal),
        stub.OpenChecks(talk.check),
    ):
        assert await refused(call) == "NOT_FROZEN"
    assert await refused(stub.Commit(talk.commit())) == "NOT_FROZEN"
    assert await refused(rig.release(talk.release(selection), 1)) == "NOT_FROZEN"


async def test_too_little_evidence_for_each_step(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    stub = rig.stubs[1]
    votes = await rig.ask("Freeze", talk.freeze)
    # One vote repeated is one vote.
    talk.votes = [votes[0]] * 3
    assert await refused(stub.LockBox(talk.lock)) == "EVIDENCE_INSUFFICIENT"
    talk.votes = votes
    locks = await rig.ask("LockBox", talk.lock)
    talk.locks = [locks[0], locks[1], locks[0]]
    assert await refused(stub.RevealCoin(talk.reveal)) == "EVIDENCE_INSUFFICIENT"
    talk.locks = locks
    coins = await rig.ask("RevealCoin", talk.reveal)
    talk.coins = coins[:2]
    assert await refused(stub.OpenChecks(talk.check)) == "EVIDENCE_INSUFFICIENT"
    assert await refused(stub.Commit(talk.commit())) == "EVIDENCE_INSUFFICIENT"
    talk.coins = coins
    commitments = await rig.ask("Commit", talk.commit())
    talk.commitments = commitments[:2]
    request = talk.release(talk.selection())
    assert await refused(rig.release(request, 1)) == "EVIDENCE_INSUFFICIENT"


async def test_checks_without_openings_show_nothing(rig: Rig) -> None:
    params = sum_round(rig, checks=Checks.NORM, degraded=Degraded.GROUPED, group_size=2)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_openings()
    assert await refused(rig.stubs[1].OpenBlame(talk.blame)) == "EVIDENCE_INSUFFICIENT"
    talk.openings = talk.openings[:2]
    assert await refused(rig.stubs[1].Commit(talk.commit())) == "EVIDENCE_INSUFFICIENT"
    forbidden = talk.commit(SelectionMode.DEGRADED_UNCHECKED)
    assert await refused(rig.stubs[1].Commit(forbidden)) == "MALFORMED_REQUEST"


async def test_forged_and_foreign_statements(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    votes = list(await rig.ask("Freeze", talk.freeze))
    forged = shared_pb.SignedStatement(statement=votes[0].statement, signature=bytes(64))
    elsewhere = sign_statement(
        rig.secrets[1],
        Speaker(params_sha256=bytes(32), holder=2).vote(
            attempt=1, set_sha256=talk.frozen.sha256, commitments=[bytes(32)] * 2
        ),
    )
    receipt = sign_statement(
        rig.secrets[1],
        Speaker(params_sha256=params.sha256, holder=2).receipt(
            device_id="anna", header_sha256=bytes(32)
        ),
    )
    for wrong in (forged, elsewhere, receipt):
        talk.votes = [*votes[1:], wrong]
        assert await refused(rig.stubs[1].LockBox(talk.lock)) == "BAD_STATEMENT"


async def test_a_second_set_in_one_attempt_and_after_a_commitment(
    rig: Rig, params: RoundParameters
) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    same_attempt = Conversation(rig, params, bundles[:3])
    later = Conversation(rig, params, bundles[:3], attempt=2)
    for other in (same_attempt, later):
        assert await refused(rig.stubs[1].Freeze(other.freeze)) == "SET_CONFLICT"


async def test_other_sums_than_those_committed_to(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    other = Selection(set_sha256=talk.frozen.sha256, mode=SelectionMode.CHECKED, sums=((0, 1, 2),))
    assert await refused(rig.release(talk.release(other), 1)) == "SUM_CONFLICT"


async def test_a_commitment_to_other_sums_than_the_first(rig: Rig) -> None:
    params = sum_round(rig, checks=Checks.NORM)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    # A holder that lies about a norm leaves its member out.
    said = shared_pb.HolderStatement.FromString(talk.openings[2].statement)
    said.openings.norms = bytes([said.openings.norms[0] ^ 1]) + said.openings.norms[1:]
    talk.openings = [*talk.openings[:2], sign_statement(rig.secrets[2], said)]
    assert await refused(rig.stubs[1].Commit(talk.commit())) == "SUM_CONFLICT"


async def test_anything_but_what_was_signed_after_a_purge(
    rig: Rig, params: RoundParameters
) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    selection = talk.selection()
    stub = rig.stubs[BODY]
    await rig.ask("Purge", pb.PurgeRequest(params_sha256=params.sha256))
    share = Bundle(params, rig.committee, "emma").inline(BODY)
    assert await offered(rig, share) == "ROUND_PURGED"
    assert await refused(rig.release(talk.release(selection), BODY)) == "ROUND_PURGED"
    again = Conversation(rig, params, bundles, attempt=2)
    assert await refused(stub.Freeze(again.freeze)) == "ROUND_PURGED"
    assert await stub.Freeze(talk.freeze) == talk.votes[BODY - 1]
    assert await stub.Commit(talk.commit()) == talk.commitments[BODY - 1]
    listed = await stub.ListShares(pb.ListSharesRequest(params_sha256=params.sha256))
    assert len(listed.receipts) == len(NAMES)


async def test_a_share_after_the_commitment(rig: Rig, params: RoundParameters) -> None:
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    await Conversation(rig, params, bundles).run_to_commitments()
    share = Bundle(params, rig.committee, "emma").inline(BODY)
    assert await offered(rig, share) == "ROUND_CLOSED"


async def test_a_vote_before_the_keys_are_dealt(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    for index in rig.indices:
        await rig.start(index)
    try:
        params = sum_round(rig)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        await rig.store(bundles)
        talk = Conversation(rig, params, bundles)
        described = await rig.stubs[3].Describe(pb.DescribeRequest())
        assert not described.has_keys
        assert await refused(rig.stubs[3].Freeze(talk.freeze)) == "KEYS_MISSING"
    finally:
        await rig.__aexit__(None, None, None)


def sealed_by_hand(rig: Rig, params: RoundParameters, plaintext: bytes) -> pb.InlineShare:
    """A share of a device that seals what it likes, rightly signed and committed to."""
    key, nonce = bytes(range(32)), bytes(16)
    sealed = bytearray(len(plaintext) + 16)
    ChunkCipher(key, chunks=1).seal_into(0, plaintext, memoryview(sealed))
    frames = [
        seal_to(
            identity,
            key,
            frame_info(
                params_sha256=params.sha256, device_id="anna", holder=identity.index, nonce=nonce
            ),
        )
        for identity in rig.committee.holders
    ]
    header = shared_pb.SharedHeader(
        params_sha256=params.sha256,
        device_id="anna",
        nonce=nonce,
        model_version=params.base_version,
        frame_sha256=[hashlib.sha256(frame).digest() for frame in frames],
        body_sha256=[hashlib.sha256(sealed[-16:]).digest()] * params.num_bodies,
    )
    start = pb.ShareStart(
        params_sha256=params.sha256,
        header=signer("anna").sign_header(header),
        frame=frames[BODY - 1],
        body_bytes=len(sealed),
    )
    return pb.InlineShare(start=start, body=bytes(sealed))


@pytest.mark.slow
@pytest.mark.parametrize("share_format", list(ShareFormat))
async def test_chunks_in_another_order_are_refused_and_leave_nothing(
    rig: Rig, share_format: ShareFormat
) -> None:
    params = sum_round(rig, dim=280_000, format=share_format)
    await rig.open(params)
    bundle = Bundle(params, rig.committee, "anna")
    chunk_bytes = (1 << 20) + 16
    start, first, second, *rest = bundle.stream(BODY, piece_bytes=chunk_bytes)
    reason = await refused(rig.stubs[BODY].StoreShare(iter([start, second, first, *rest])))
    assert reason == "SEAL_BROKEN"
    assert not list((rig.folder / f"data-{BODY}" / "bodies").iterdir())
    receipt = await rig.stubs[BODY].StoreShare(iter([start, first, second, *rest]))
    assert rig.read(params, receipt).receipt.device_id == "anna"
