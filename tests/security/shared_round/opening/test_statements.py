"""Statements: what was built is read back, and what does not fit the round is refused."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadStatementError
from security.secret_sharing.field import M31, M61, MersenneField, Words
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.openings import OpeningValues, opening_sizes
from security.shared_round.opening.statements import (
    OpeningSizes,
    Speaker,
    read_blame,
    read_coin,
    read_commitment,
    read_lock,
    read_openings,
    read_receipt,
    read_sum_share,
    read_vote,
    sums_from_bytes,
    words_from_bytes,
    words_to_bytes,
)
from security.shared_round.terms.parameter_facts import Checks
from security.shared_round.terms.parameters import RoundParameters
from tests.looped import looped
from tests.security.shared_round.sealed_round import make_round

PARAMS = make_round(checks=Checks.DISTANCES)
SUM_ONLY = make_round(checks=Checks.SUM)
SPEAKER = Speaker(params_sha256=PARAMS.sha256, holder=2)
SET = hashlib.sha256(b"set").digest()
COIN = hashlib.sha256(b"coin").digest()
SELECTION = hashlib.sha256(b"selection").digest()
OTHER = hashlib.sha256(b"other").digest()
MEMBERS = 9


def words(count: int, *, seed: int = 1) -> Words:
    drawn = np.random.default_rng(seed).integers(0, M61.modulus, count, dtype=np.uint64)
    if count:
        drawn[0] = M61.modulus - 1
    return drawn


def values(params: RoundParameters = PARAMS, members: int = MEMBERS) -> OpeningValues:
    consistency, norms, wraps, distances = opening_sizes(params, members)
    return OpeningValues(
        consistency=words(consistency, seed=1),
        norms=words(norms, seed=2),
        wraps=words(wraps, seed=3),
        distances=words(distances, seed=4),
    )


def sizes(params: RoundParameters = PARAMS) -> OpeningSizes:
    consistency, norms, wraps, distances = opening_sizes(params, MEMBERS)
    return OpeningSizes(consistency=consistency, norms=norms, wraps=wraps, distances=distances)


def openings(of: OpeningValues) -> pb.HolderStatement:
    return SPEAKER.openings(set_sha256=SET, coin_sha256=COIN, values=of)


DIGESTS = [bytes([number]) * 32 for number in range(1, 1 + len(PARAMS.scheme.pieces_of(2)))]
BOX = BallotBox(scheme=PARAMS.scheme, set_sha256=SET, holders=(1, 2), commitments=())
STATEMENTS: dict[str, pb.HolderStatement] = {
    "receipt": SPEAKER.receipt(device_id="phone-1", header_sha256=OTHER),
    "vote": SPEAKER.vote(attempt=3, set_sha256=SET, commitments=DIGESTS),
    "lock": SPEAKER.lock(BOX),
    "coin": SPEAKER.coin(BOX, DIGESTS),
    "openings": openings(values()),
    "blame": SPEAKER.blame(
        set_sha256=SET, coin_sha256=COIN, members=[1, 4], wraps=words(2 * PARAMS.wrap_tests)
    ),
    "commitment": SPEAKER.commitment(set_sha256=SET, selection_sha256=SELECTION),
    "sum": SPEAKER.sum_share(selection_sha256=SELECTION, num_sums=2, data_sha256=OTHER),
}
READERS: dict[str, Callable[[pb.HolderStatement], object]] = {
    "receipt": read_receipt,
    "vote": lambda statement: read_vote(statement, attempt=3, set_sha256=SET, scheme=PARAMS.scheme),
    "lock": lambda statement: read_lock(statement, set_sha256=SET),
    "coin": lambda statement: read_coin(statement, set_sha256=SET, scheme=PARAMS.scheme),
    "openings": lambda statement: read_openings(
        statement, set_sha256=SET, coin_sha256=COIN, sizes=sizes(), field=M61
    ),
    "blame": lambda statement: read_blame(
        statement,
        set_sha256=SET,
        coin_sha256=COIN,
        members=(1, 4),
        wrap_tests=PARAMS.wrap_tests,
        field=M61,
    ),
    "commitment": lambda statement: read_commitment(
        statement, set_sha256=SET, selection_sha256=SELECTION
    ),
    "sum": lambda statement: read_sum_share(statement, selection_sha256=SELECTION, num_sums=2),
}


def test_every_kind_of_statement_has_a_builder_and_a_reader() -> None:
    kinds = {field.name for field in pb.HolderStatement.DESCRIPTOR.oneofs[0].fields}
    assert set(STATEMENTS) == set(READERS) == kinds


@looped("kind", sorted(STATEMENTS))
def test_a_statement_names_round_and_holder_and_is_of_its_kind(kind: str) -> None:
    statement = STATEMENTS[kind]
    assert statement.params_sha256 == PARAMS.sha256
    assert statement.holder == 2
    assert statement.WhichOneof("statement") == kind


@looped("kind", sorted(STATEMENTS))
def test_a_reader_takes_its_kind_only(kind: str) -> None:
    for other, statement in STATEMENTS.items():
        if other == kind:
            READERS[kind](statement)
        else:
            with pytest.raises(BadStatementError, match=f"must state {kind}, got {other}"):
                READERS[kind](statement)


def test_words_come_back() -> None:
    read = read_openings(
        STATEMENTS["openings"], set_sha256=SET, coin_sha256=COIN, sizes=sizes(), field=M61
    )
    for name in ("consistency", "norms", "wraps", "distances"):
        np.testing.assert_array_equal(getattr(read, name), getattr(values(), name))
    assert READERS["vote"](STATEMENTS["vote"]) == tuple(DIGESTS)
    assert READERS["lock"](STATEMENTS["lock"]) == BOX.sha256
    coin = read_coin(STATEMENTS["coin"], set_sha256=SET, scheme=PARAMS.scheme)
    assert (coin.box_sha256, coin.pieces) == (BOX.sha256, tuple(DIGESTS))
    blame = read_blame(
        STATEMENTS["blame"],
        set_sha256=SET,
        coin_sha256=COIN,
        members=(1, 4),
        wrap_tests=PARAMS.wrap_tests,
        field=M61,
    )
    np.testing.assert_array_equal(blame, words(2 * PARAMS.wrap_tests))
    assert read_receipt(STATEMENTS["receipt"]).device_id == "phone-1"
    assert read_sum_share(STATEMENTS["sum"], selection_sha256=SELECTION, num_sums=2) == OTHER


def test_openings_without_checks_are_empty() -> None:
    read = read_openings(
        openings(values(SUM_ONLY)),
        set_sha256=SET,
        coin_sha256=COIN,
        sizes=sizes(SUM_ONLY),
        field=M61,
    )
    assert len(read.norms) == len(read.wraps) == 0


@looped(
    "kind, field",
    [
        ("vote", "set_sha256"),
        ("lock", "set_sha256"),
        ("lock", "box_sha256"),
        ("coin", "set_sha256"),
        ("coin", "box_sha256"),
        ("openings", "set_sha256"),
        ("openings", "coin_sha256"),
        ("blame", "set_sha256"),
        ("blame", "coin_sha256"),
        ("commitment", "set_sha256"),
        ("commitment", "selection_sha256"),
        ("sum", "selection_sha256"),
    ],
)
def test_a_statement_about_something_else_is_refused(kind: str, field: str) -> None:
    # Any box may be named; whether it is the one that is meant, whoever reads it must see.
    values = (b"", SET[:-1]) if field == "box_sha256" else (OTHER, b"", SET[:-1])
    for value in values:
        changed = pb.HolderStatement()
        changed.CopyFrom(STATEMENTS[kind])
        setattr(getattr(changed, kind), field, value)
        with pytest.raises(BadStatementError, match=field):
            READERS[kind](changed)


@looped(
    "kind, field, value",
    [
        ("receipt", "device_id", ""),
        ("receipt", "header_sha256", b"short"),
        ("vote", "attempt", 2),
        ("openings", "consistency", b""),
        ("openings", "norms", words_to_bytes(words(MEMBERS + 1))),
        ("openings", "wraps", words_to_bytes(words(1))),
        ("openings", "distances", b""),
        ("openings", "distances", b"\xff" * 8 * 36),
        ("blame", "wraps", words_to_bytes(words(PARAMS.wrap_tests))),
        ("sum", "num_sums", 1),
        ("sum", "data_sha256", b""),
    ],
)
def test_a_field_that_does_not_fit_is_refused(kind: str, field: str, value: object) -> None:
    changed = pb.HolderStatement()
    changed.CopyFrom(STATEMENTS[kind])
    setattr(getattr(changed, kind), field, value)
    with pytest.raises(BadStatementError):
        READERS[kind](changed)


@looped("kind, name", [("vote", "coin_commitments"), ("coin", "pieces")])
@looped("pieces", [[], DIGESTS[1:], [*DIGESTS, bytes(32)], [*DIGESTS[1:], bytes(31)]])
def test_one_piece_of_32_bytes_belongs_to_each_key(
    kind: str, name: str, pieces: list[bytes]
) -> None:
    changed = pb.HolderStatement()
    changed.CopyFrom(STATEMENTS[kind])
    body = getattr(changed, kind)
    body.ClearField(name)
    getattr(body, name).extend(pieces)
    with pytest.raises(BadStatementError, match=name):
        READERS[kind](changed)


@pytest.mark.parametrize("members", [(), (1,), (4, 1), (1, 5), (1, 4, 4)])
def test_blame_of_other_members_is_refused(members: tuple[int, ...]) -> None:
    with pytest.raises(BadStatementError, match="members"):
        read_blame(
            STATEMENTS["blame"],
            set_sha256=SET,
            coin_sha256=COIN,
            members=members,
            wrap_tests=PARAMS.wrap_tests,
            field=M61,
        )


@pytest.mark.parametrize("field", [M61, M31], ids=["61", "31"])
def test_words_are_below_the_modulus(field: MersenneField) -> None:
    largest = np.array([field.modulus - 1], np.uint64)
    read = words_from_bytes(words_to_bytes(largest), count=1, field=field)
    assert read.dtype == np.uint64
    assert read.tolist() == [field.modulus - 1]
    with pytest.raises(BadStatementError, match="below"):
        words_from_bytes(words_to_bytes(largest + np.uint64(1)), count=1, field=field)


def test_words_are_little_endian_on_the_wire() -> None:
    assert words_to_bytes(np.array([1, 258], np.uint64)) == b"\1" + bytes(7) + b"\2\1" + bytes(6)


def test_sums_come_back() -> None:
    sums = [words(100, seed=5), words(100, seed=6)]
    data = b"".join(words_to_bytes(each) for each in sums)
    digest = hashlib.sha256(data).digest()
    read = sums_from_bytes(data, data_sha256=digest, num_sums=2, dim=100, field=M61)
    np.testing.assert_array_equal(read, sums)
    for wrong in (
        {"data_sha256": OTHER},
        {"num_sums": 1},
        {"dim": 99},
        {"field": M31},
    ):
        arguments = {"data_sha256": digest, "num_sums": 2, "dim": 100, "field": M61} | wrong
        with pytest.raises(BadStatementError):
            sums_from_bytes(data, **arguments)  # type: ignore[arg-type]
