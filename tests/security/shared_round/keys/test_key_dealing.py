"""Replicated keys: dealt to the right holders, and by nobody else."""

import itertools
import random

import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import BadStatementError, MalformedMessageError, SealBrokenError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.key_dealing import accept_keys, deal_keys
from security.shared_round.terms.committee import Committee
from tests.looped import looped

HOLDERS = [HolderSecrets.generate(random.Random(seed).randbytes) for seed in range(5)]


def committee(threshold: int, holders: int) -> Committee:
    return Committee(
        threshold=threshold,
        holders=tuple(
            secrets.identity(index=index, name=f"holder {index}", address="")
            for index, secrets in enumerate(HOLDERS[:holders], start=1)
        ),
    )


FIVE = committee(3, 5)
THREE = committee(2, 3)


def dealt(parties: Committee) -> list[pb.SealedKey]:
    indices = range(1, len(parties.holders) + 1)
    return [key for holder in indices for key in deal_keys(HOLDERS[holder - 1], parties, holder)]


DEALT_TO_FIVE = dealt(FIVE)
DEALT_TO_THREE = dealt(THREE)


def accepted(
    parties: Committee, holder: int, sealed: list[pb.SealedKey]
) -> dict[tuple[int, ...], bytes]:
    return accept_keys(HOLDERS[holder - 1], parties, holder, sealed)


def grant(recipient: int = 3, excluded: tuple[int, ...] = (2,)) -> pb.SealedKey:
    """Return a key dealt by holder 1 in the committee of three."""
    found = next(
        key
        for key in DEALT_TO_THREE
        if key.recipient == recipient and tuple(key.excluded) == excluded
    )
    copy = pb.SealedKey()
    copy.CopyFrom(found)
    return copy


@pytest.mark.parametrize(
    ("parties", "keys"), [(FIVE, DEALT_TO_FIVE), (THREE, DEALT_TO_THREE)], ids=["3 of 5", "2 of 3"]
)
def test_every_set_shares_one_key_that_its_complement_lacks(
    parties: Committee, keys: list[pb.SealedKey]
) -> None:
    n, t = len(parties.holders), parties.threshold
    held = {holder: accepted(parties, holder, keys) for holder in range(1, n + 1)}
    sets = list(itertools.combinations(range(1, n + 1), t - 1))
    values = set()
    for excluded in sets:
        shared = {held[holder][excluded] for holder in held if holder not in excluded}
        assert len(shared) == 1
        values |= shared
        assert all(excluded not in held[holder] for holder in excluded)
    assert len(values) == len(sets)
    assert all(len(value) == 32 for value in values)


def test_dealing_again_deals_the_same_keys() -> None:
    again = deal_keys(HOLDERS[0], THREE, 1)
    assert accepted(THREE, 3, again) == accepted(THREE, 3, DEALT_TO_THREE[: len(again)])
    assert accepted(THREE, 3, DEALT_TO_THREE + again) == accepted(THREE, 3, DEALT_TO_THREE)


def test_another_committee_has_other_keys() -> None:
    other = committee(2, 4)
    keys = deal_keys(HOLDERS[0], other, 1)
    assert accepted(other, 3, keys)[2,] != accepted(THREE, 3, DEALT_TO_THREE)[2,]


def test_keys_of_others_are_passed_over() -> None:
    foreign = grant(recipient=1, excluded=(2,))
    foreign.signature = b"forged"
    assert accepted(THREE, 3, [foreign]) == {}


def test_a_forged_key_is_refused() -> None:
    for name in ("sealed", "signature"):
        forged = grant()
        data = bytearray(getattr(forged, name))
        data[-1] ^= 1
        setattr(forged, name, bytes(data))
        with pytest.raises(BadStatementError, match="not signed by holder 1"):
            accepted(THREE, 3, [forged])


def test_a_key_of_the_wrong_dealer_is_refused() -> None:
    # Holder 3 claims to have dealt what only holder 1 may deal.
    wrong = grant(recipient=3, excluded=(2,))
    wrong.dealer = 3
    with pytest.raises(BadStatementError, match="must be dealt by 1, not 3"):
        accepted(THREE, 3, [wrong])


@looped("excluded", [(), (3,), (4,), (0,), (1, 2), (2, 2)])
def test_a_key_of_a_set_that_is_none_is_refused(excluded: tuple[int, ...]) -> None:
    wrong = grant()
    wrong.excluded[:] = excluded
    with pytest.raises(BadStatementError, match="no key"):
        accepted(THREE, 3, [wrong])


def test_a_key_dealt_in_another_committee_is_refused() -> None:
    keys = deal_keys(HOLDERS[0], committee(2, 4), 1)
    with pytest.raises(BadStatementError, match="not signed"):
        accepted(THREE, 3, keys)


def test_a_key_moved_to_another_set_is_refused() -> None:
    moved = grant(recipient=3, excluded=(2,))
    other = grant(recipient=2, excluded=(3,))
    moved.sealed, moved.signature = other.sealed, other.signature
    with pytest.raises(BadStatementError, match="not signed"):
        accepted(THREE, 3, [moved])


def test_a_key_that_does_not_open_is_refused() -> None:
    with pytest.raises(SealBrokenError):
        accept_keys(HOLDERS[3], THREE, 3, [grant()])


def test_two_different_keys_of_one_set_are_refused() -> None:
    # The dealer replaced its dealing seed, signs as before, and so contradicts itself.
    seeds = {
        "signing_seed": HOLDERS[0].signing_seed,
        "mlkem_seed": HOLDERS[0].mlkem_seed,
        "x25519_seed": HOLDERS[0].x25519_seed,
    }
    replaced = HolderSecrets(**seeds, dealing_seed=bytes(32))
    other = deal_keys(replaced, THREE, 1)
    with pytest.raises(BadStatementError, match="two keys"):
        accepted(THREE, 3, [grant(), *other])


def test_a_holder_outside_the_committee_neither_deals_nor_accepts() -> None:
    with pytest.raises(MalformedMessageError):
        deal_keys(HOLDERS[3], THREE, 4)
    with pytest.raises(MalformedMessageError):
        accept_keys(HOLDERS[3], THREE, 4, DEALT_TO_THREE)
