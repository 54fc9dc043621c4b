"""Bundles: the same bytes on every read, and none that do not fit the round."""

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest
import xxhash

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import MalformedMessageError, SharingError, WrongRoundParametersError
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import (
    MAX_PREFIX_BYTES,
    BundleIndex,
    SealedUpdate,
    check_structure,
    parse_prefix,
)
from tests.looped import looped
from tests.security.shared_round.sealed_round import (
    COMMITTEE,
    PHONE,
    Parts,
    device,
    make_round,
    sealed,
    sha256,
    update_of,
)

SMALL = make_round()
# Three chunks a body, the last one short, of either field.
LONG = make_round(dim=300_000)
LONG_CNF = make_round(dim=300_000, format=ShareFormat.CNF_SEEDED)
LONG_31 = make_round(dim=600_000, checks=Checks.SUM, field_bits=31)
LONG_BUNDLES = {
    "shamir": sealed(LONG),
    "cnf": sealed(LONG_CNF),
    "31 bits": sealed(LONG_31),
}


def structure(
    params: RoundParameters, bundle: bytes, *, device_id: str = "phone-1", extra_bytes: int = 0
) -> BundleIndex:
    prefix, prefix_bytes = parse_prefix(bundle)
    return check_structure(
        params,
        prefix,
        prefix_bytes=prefix_bytes,
        total_bytes=len(bundle) + extra_bytes,
        device_id=device_id,
    )


@pytest.mark.parametrize("kind", sorted(LONG_BUNDLES))
def test_every_read_gives_the_same_bytes(kind: str) -> None:
    update = LONG_BUNDLES[kind]
    whole = update[:]
    assert len(whole) == len(update)
    assert update.digest == xxhash.xxh3_128_digest(whole)
    draw = random.Random(5)
    for _ in range(8):
        start = draw.randrange(len(update))
        stop = start + draw.choice([1, 100, 70_000, 1_500_000])
        assert update[start:stop] == whole[start:stop]


def test_slices_are_those_of_bytes() -> None:
    update = sealed(SMALL)
    whole = update[:]
    for part in (slice(-5, None), slice(7, 3), slice(10**9, None), slice(None, 10**9)):
        assert update[part] == whole[part]
    assert update.read(len(update), 10) == b""
    with pytest.raises(SharingError, match="step"):
        update[::2]


@pytest.mark.parametrize("params", [SMALL, LONG, LONG_CNF, LONG_31], ids=["s", "l", "cnf", "31"])
def test_every_body_is_found_in_the_bundle(params: RoundParameters) -> None:
    index = BundleIndex(params=params, prefix_bytes=1000)
    seen: list[tuple[int, int]] = []
    for holder in range(1, params.holders + 1):
        extents = index.extents(holder)
        assert bool(extents) == params.has_body(holder)
        if extents:
            assert sum(length for _, length in extents) == params.body_bytes(0)
            seen += extents
    if params.format is ShareFormat.CNF_SEEDED:
        seen = sorted(set(seen))
    position = 1000
    for offset, length in sorted(seen):
        assert offset == position
        position += length
    assert position == index.total_bytes


@pytest.mark.parametrize("kind", sorted(LONG_BUNDLES))
def test_an_honest_bundle_has_the_structure(kind: str) -> None:
    update = LONG_BUNDLES[kind]
    params = update.index.params
    assert structure(params, update[:]).total_bytes == len(update)
    prefix, _ = parse_prefix(update[:MAX_PREFIX_BYTES])
    assert sha256(prefix.header.header) == update.header_sha256


def test_two_updates_share_no_secret() -> None:
    first, second = sealed(SMALL, seed=3)[:], sealed(SMALL, seed=4)[:]
    left, right = Parts(SMALL, first), Parts(SMALL, second)
    assert left.chunks(3)[0] != right.chunks(3)[0]
    assert left.header.header.nonce != right.header.header.nonce


def test_a_bundle_of_another_length_is_refused() -> None:
    bundle = sealed(SMALL)[:]
    for extra in (-1, 1):
        with pytest.raises(MalformedMessageError, match="must have"):
            structure(SMALL, bundle, extra_bytes=extra)


def test_a_bundle_of_another_device_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="phone-2"):
        structure(SMALL, sealed(SMALL)[:], device_id="phone-2")


def test_a_bundle_of_another_round_is_refused() -> None:
    with pytest.raises(WrongRoundParametersError):
        structure(make_round(round=8), sealed(SMALL)[:])


def test_an_update_too_stale_or_of_the_future_is_refused() -> None:
    for model_version in (3, 6):
        with pytest.raises(WrongRoundParametersError):
            SealedUpdate(
                SMALL,
                COMMITTEE,
                PHONE,
                update_of(100),
                device_id="phone-1",
                model_version=model_version,
            )
    bundle = sealed(SMALL)[:]
    changed = rewritten(bundle, lambda header: setattr(header, "model_version", 3))
    with pytest.raises(WrongRoundParametersError):
        structure(SMALL, changed)


def rewritten(bundle: bytes, change: Callable[[pb.SharedHeader], None]) -> bytes:
    """Return the bundle with a changed header; nobody checks signatures here."""
    prefix, prefix_bytes = parse_prefix(bundle)
    header = pb.SharedHeader.FromString(prefix.header.header)
    change(header)
    prefix.header.header = header.SerializeToString()
    data = prefix.SerializeToString()
    return b"FSU1" + len(data).to_bytes(4, "little") + data + bundle[prefix_bytes:]


@looped(
    "change",
    [
        lambda header: header.frame_sha256.pop(),
        lambda header: header.frame_sha256.append(bytes(32)),
        lambda header: header.frame_sha256.__setitem__(0, bytes(31)),
        lambda header: header.frame_sha256.__setitem__(0, bytes(32)),
        lambda header: header.body_sha256.pop(),
        lambda header: header.piece_sha256.append(bytes(32)),
        lambda header: setattr(header, "nonce", bytes(15)),
        lambda header: setattr(header, "device_id", ""),
    ],
)
def test_a_header_of_another_form_is_refused(change: Callable[[pb.SharedHeader], None]) -> None:
    with pytest.raises(MalformedMessageError):
        structure(SMALL, rewritten(sealed(SMALL)[:], change))


def test_frames_of_another_number_or_size_are_refused() -> None:
    bundle = sealed(SMALL)[:]
    for frames in (lambda old: old[:4], lambda old: [*old[:4], old[4] + b"x"]):
        prefix, _ = parse_prefix(bundle)
        changed = frames(list(prefix.frames))
        del prefix.frames[:]
        prefix.frames.extend(changed)
        with pytest.raises(MalformedMessageError, match="frame"):
            check_structure(SMALL, prefix, prefix_bytes=9, total_bytes=9, device_id="phone-1")


@looped(
    "data",
    [
        b"",
        b"FSU1",
        b"FSU2" + bytes(4),
        b"FSU1\x05\0\0\0abcd",
        b"FSU1" + (2**20).to_bytes(4, "little") + bytes(2**20),
        b"FSU1\x01\0\0\0\xff",
    ],
)
def test_bytes_that_begin_with_no_prefix_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        parse_prefix(data)


def test_a_changed_vector_is_noticed_before_anything_leaves() -> None:
    vector = update_of(LONG.dim)
    update = sealed(LONG, vector)
    vector[0] += 0.25
    # The first chunk of all bodies has changed, the others have not.
    with pytest.raises(SharingError, match="must not change"):
        update[:]
    assert update[-100:]


@looped(
    "vector",
    [
        np.zeros(99, np.float32),
        np.zeros((1, 100), np.float32),
        np.zeros(100, np.float64),
        np.full(100, np.nan, np.float32),
        np.full(100, np.inf, np.float32),
        np.full(100, 0.2, np.float32),
        np.full(100, 1e9, np.float32),
    ],
)
def test_a_vector_that_cannot_be_shared_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(SharingError):
        sealed(SMALL, vector)


def test_the_parties_must_be_those_of_the_round() -> None:
    with pytest.raises(WrongRoundParametersError, match="certificate"):
        SealedUpdate(SMALL, COMMITTEE, PHONE, update_of(100), device_id="phone-2", model_version=5)
    for other in (
        dataclasses.replace(COMMITTEE, threshold=2),
        dataclasses.replace(COMMITTEE, holders=COMMITTEE.holders[:4]),
    ):
        with pytest.raises(WrongRoundParametersError, match="committee"):
            SealedUpdate(SMALL, other, PHONE, update_of(100), device_id="phone-1", model_version=5)
    disagreeing = dataclasses.replace(SMALL, threshold=2, quorum=4)
    with pytest.raises(WrongRoundParametersError, match="threshold"):
        sealed(disagreeing)


def test_the_operating_systems_random_source_is_the_default() -> None:
    bundles = [
        SealedUpdate(SMALL, COMMITTEE, PHONE, update_of(100), device_id="phone-1", model_version=5)
        for _ in range(2)
    ]
    nonces = [Parts(SMALL, bundle[:]).header.header.nonce for bundle in bundles]
    assert nonces[0] != nonces[1]


def test_every_device_seals_for_itself() -> None:
    other = device("phone-2")
    bundle = sealed(SMALL, signer=other)[:]
    assert structure(SMALL, bundle, device_id="phone-2").total_bytes == len(bundle)
