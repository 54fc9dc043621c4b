"""Malicious holders and their coordinator against the coin of a round, over gRPC.

Holders 1 and 2 of (3, 5) are the adversary's: it signs for them what it likes.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.shared_round.keys.signing import sign_statement
from security.shared_round.opening.openings import compute_openings
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from server.holder.app import open_holder
from tests.server.holder.conversation import Conversation
from tests.server.holder.rig import NOW_S, Bundle, Rig, round_parameters
from tests.server.holder.test_refusals import refused

NAMES = ("anna", "berta", "carla")
HONEST = (3, 4, 5)
HONEST_PAIR = 9  # the place of the set {4, 5}, which 4 and 5 cannot check, among all
Signed = shared_pb.SignedStatement


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, 3, 5) as running:
        yield running


async def voted(rig: Rig) -> tuple[Conversation, dict[int, Signed]]:
    params = round_parameters(rig.committee, format=ShareFormat.SHAMIR_SEEDED)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    votes = await rig.ask("Freeze", talk.freeze)
    return talk, dict(enumerate(votes, start=1))


def forged_vote(talk: Conversation, vote: Signed, holder: int, commitment: bytes) -> Signed:
    """A vote of a malicious holder with a hash of its choice for the set {4, 5}."""
    said = shared_pb.HolderStatement.FromString(vote.statement)
    place = talk.params.scheme.pieces_of(holder).index(HONEST_PAIR)
    said.vote.coin_commitments[place] = commitment
    return sign_statement(talk.rig.secrets[holder - 1], said)


def with_forged(
    talk: Conversation, votes: Mapping[int, Signed], honest: Iterable[int], commitment: bytes
) -> list[Signed]:
    """A ballot box of some honest votes and the malicious ones."""
    forged = [forged_vote(talk, votes[holder], holder, commitment) for holder in (1, 2)]
    return [*forged, *(votes[holder] for holder in honest)]


def true_openings(talk: Conversation, index: int) -> Signed:
    """What a holder that is stopped, and does as it likes, opens."""
    holder = open_holder(talk.rig.config(index), now_s=lambda: NOW_S)
    try:
        vectors = holder.rounds._parts.shares.vectors(
            talk.params, talk.frozen, range(len(talk.frozen.members))
        )
        values = compute_openings(
            talk.params, talk.coin, talk.frozen.sha256, vectors, holder.keyring.keys()
        )
    finally:
        holder.storage.close()
    said = holder.me.speaker(talk.params.sha256).openings(
        set_sha256=talk.frozen.sha256, coin_sha256=talk.coin.sha256, values=values
    )
    return sign_statement(holder.me.secrets, said)


def forged_locks(talk: Conversation) -> list[Signed]:
    """Malicious holders lock themselves to every box."""
    speakers = (Speaker(params_sha256=talk.params.sha256, holder=holder) for holder in (1, 2))
    return [
        sign_statement(talk.rig.secrets[speaker.holder - 1], speaker.lock(talk.box))
        for speaker in speakers
    ]


async def test_nothing_is_revealed_before_a_quorum_is_locked_to_the_box(rig: Rig) -> None:
    """Who saw one piece of {1, 2} could make another box for a coin of its choice."""
    talk, votes = await voted(rig)
    talk.votes = list(votes.values())
    talk.locks = forged_locks(talk)
    for index in HONEST:
        assert await refused(rig.stubs[index].RevealCoin(talk.reveal)) == "EVIDENCE_INSUFFICIENT"
    talk.locks = [*forged_locks(talk), *await rig.ask("LockBox", talk.lock, (3,))]
    assert await refused(rig.stubs[3].RevealCoin(talk.reveal)) == "EVIDENCE_INSUFFICIENT"
    talk.locks = [*talk.locks, *await rig.ask("LockBox", talk.lock, (4,))]
    await rig.ask("RevealCoin", talk.reveal, HONEST)


async def test_of_two_boxes_one_at_most_is_revealed(rig: Rig) -> None:
    talk, votes = await voted(rig)
    # 4 and 5 cannot see that {4, 5} has a false hash: it is nobody's but the malicious holders'.
    talk.votes = with_forged(talk, votes, (4, 5), b"f" * 32)
    locks = await rig.ask("LockBox", talk.lock, (4, 5))
    second = Conversation(rig, talk.params, talk.bundles)
    second.votes = [votes[holder] for holder in (1, 2, 3, 4)]
    locked = await rig.ask("LockBox", second.lock, (3,))
    # Whoever is locked says so again, and stays with its box.
    assert await rig.ask("LockBox", second.lock, (4,)) == [locks[0]]
    second.locks = [*forged_locks(second), *locked, locks[0]]
    assert await refused(rig.stubs[3].RevealCoin(second.reveal)) == "EVIDENCE_INSUFFICIENT"
    assert await refused(rig.stubs[4].RevealCoin(second.reveal)) == "SET_CONFLICT"
    talk.locks = [*forged_locks(talk), *locks]
    await rig.ask("RevealCoin", talk.reveal, (4, 5))
    # A third box, made when the pieces of {1, 2} are known, finds nobody.
    third = Conversation(rig, talk.params, talk.bundles)
    third.votes = with_forged(third, votes, (4, 5), b"g" * 32)
    third.locks = [*forged_locks(third), *locks]
    for index in (4, 5):
        assert await rig.ask("LockBox", third.lock, (index,)) == [locks[index - 4]]
    assert await refused(rig.stubs[3].RevealCoin(third.reveal)) == "SET_CONFLICT"
    later = Conversation(rig, talk.params, talk.bundles, attempt=2)
    for index in HONEST:
        assert await refused(rig.stubs[index].Freeze(later.freeze)) == "SET_CONFLICT"


async def test_a_box_that_belies_a_holder_is_refused(rig: Rig) -> None:
    talk, votes = await voted(rig)
    talk.votes = with_forged(talk, votes, (3, 4, 5), b"f" * 32)
    for index in HONEST:
        assert await refused(rig.stubs[index].LockBox(talk.lock)) == "BAD_STATEMENT"
    talk.votes = with_forged(talk, votes, (4, 5), b"f" * 32)
    assert await refused(rig.stubs[3].LockBox(talk.lock)) == "EVIDENCE_INSUFFICIENT"


async def test_malicious_holders_cannot_change_the_coin_when_they_know_it(rig: Rig) -> None:
    talk, votes = await voted(rig)
    talk.votes = list(votes.values())
    talk.locks = await rig.ask("LockBox", talk.lock)
    honest = await rig.ask("RevealCoin", talk.reveal, HONEST)
    talk.coins = [*honest, *await rig.ask("RevealCoin", talk.reveal, (1,))]
    right = talk.coin
    speaker = Speaker(params_sha256=talk.params.sha256, holder=2)
    false = sign_statement(rig.secrets[1], speaker.coin(talk.box, [b"z" * 32] * 6))
    talk.coins = [*talk.coins, false]
    assert (talk.coin.value, talk.coin.liars) == (right.value, (2,))
    talk.coins = [*honest, false]
    assert await refused(rig.stubs[3].OpenChecks(talk.check)) == "EVIDENCE_INSUFFICIENT"


async def test_a_holder_outside_of_the_box_opens_nothing_and_does_not_count(
    tmp_path: Path,
) -> None:
    """(2, 5): what it stores, it may have stored when the coin was known."""
    async with Rig(tmp_path, 2, 5) as rig:
        params = round_parameters(rig.committee, checks=Checks.NORM)
        await rig.open(params)
        bundles = [Bundle(params, rig.committee, name) for name in NAMES]
        inside = (1, 2, 3, 4)
        await rig.store(bundles, inside)
        talk = Conversation(rig, params, bundles)
        await talk.run_to_coins(inside)
        await rig.store(bundles, (5,))
        late = await rig.ask("Freeze", talk.freeze, (5,))
        assert await refused(rig.stubs[5].OpenChecks(talk.check)) == "EVIDENCE_INSUFFICIENT"
        assert await refused(rig.stubs[5].OpenBlame(talk.blame)) == "EVIDENCE_INSUFFICIENT"
        with_late = pb.OpenChecksRequest.FromString(talk.check.SerializeToString())
        with_late.votes.extend(late)
        assert await refused(rig.stubs[5].OpenChecks(with_late)) == "EVIDENCE_INSUFFICIENT"
        talk.openings = await rig.ask("OpenChecks", talk.check, inside)
        whole = talk.openings
        await rig.stop(5)
        # Right as they are: they could be anything.
        talk.openings = [*whole[:3], true_openings(talk, 5)]
        assert await refused(rig.stubs[1].Commit(talk.commit())) == "EVIDENCE_INSUFFICIENT"
        talk.openings = whole
        commitments = await rig.ask("Commit", talk.commit(), inside)
        await rig.start(5)
        commitments += await rig.ask("Commit", talk.commit(), (5,))
        # What is shown convinces it as anybody else.
        commitments = await rig.ask("Commit", talk.commit())
        assert (
            len({rig.read(params, each).commitment.selection_sha256 for each in commitments}) == 1
        )
