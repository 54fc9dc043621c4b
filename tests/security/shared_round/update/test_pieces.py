"""What a holder accepts: shares that open to the update, and nothing that anybody tampered with."""

import itertools
import operator
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import (
    CommitmentMismatchError,
    MalformedMessageError,
    OutOfRangeWordError,
    SealBrokenError,
    SecurityError,
    SharedRoundError,
    WrongHolderError,
    WrongRoundParametersError,
)
from security.secret_sharing.cnf import conversion_scale
from security.secret_sharing.field import Words
from security.shared_round.keys.holder_keys import seal_to
from security.shared_round.keys.signing import VerifiedHeader
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameter_fields import TAG_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import BodyCheck, PieceKeys, SharePieces, open_frame
from security.shared_round.update.sealing import frame_info
from tests.looped import looped
from tests.security.shared_round.sealed_round import (
    AUTHORITY,
    COMMITTEE,
    FRACTION_BITS,
    HOLDERS,
    NOW_S,
    Parts,
    make_round,
    resigned,
    sealed,
    sha256,
    update_of,
)

SMALL = make_round()
SMALL_CNF = make_round(format=ShareFormat.CNF_SEEDED)
SMALL_31 = make_round(dim=700, checks=Checks.SUM, field_bits=31)
# Three chunks of 131072 words; the second seam lies within the extras.
LONG = make_round(dim=262_100)
LONG_CNF = make_round(dim=262_100, format=ShareFormat.CNF_SEEDED)
PARTS = Parts(SMALL, sealed(SMALL)[:])
PARTS_CNF = Parts(SMALL_CNF, sealed(SMALL_CNF)[:])
LONG_PARTS = Parts(LONG, sealed(LONG)[:])
EXPLICIT = 4  # a holder with a body, in shamir-seeded rounds


def keys_of(
    params: RoundParameters,
    parts: Parts,
    holder: int,
    *,
    header: VerifiedHeader | None = None,
    frame: bytes | None = None,
) -> PieceKeys:
    return open_frame(
        params,
        HOLDERS[holder - 1],
        holder,
        parts.header if header is None else header,
        parts.frame(holder) if frame is None else frame,
    )


def check_body(
    params: RoundParameters,
    parts: Parts,
    chunks: Sequence[bytes],
    *,
    holder: int = EXPLICIT,
    header: VerifiedHeader | None = None,
    cut_bytes: int = 1 << 30,
) -> None:
    header = parts.header if header is None else header
    keys = keys_of(params, parts, holder, header=header)
    check = BodyCheck(params, keys, header, holder)
    body = b"".join(chunks)
    for start in range(0, len(body), cut_bytes):
        check.feed(body[start : start + cut_bytes])
    check.finish()


def share(params: RoundParameters, parts: Parts, holder: int) -> Words:
    chunks = parts.chunks(holder)
    pieces = SharePieces(
        params, keys_of(params, parts, holder), holder, chunks.__getitem__ if chunks else None
    )
    words: list[Words] = []
    for start, part in pieces.chunks():
        assert start == sum(len(earlier) for earlier in words)
        words.append(part.copy())
    return np.concatenate(words)


def at_zero(params: RoundParameters, shares: dict[int, Words], scale: int) -> list[int]:
    """Interpolate in Python's integers; return the centred values."""
    p = params.field.modulus
    weights = {}
    for j in shares:
        others = [i for i in shares if i != j]
        top = np.prod(others, dtype=object)
        bottom = np.prod([i - j for i in others], dtype=object)
        weights[j] = int(top) * pow(int(bottom) * scale, -1, p) % p
    rows = zip(*(words.tolist() for words in shares.values()), strict=True)
    factors = [weights[j] for j in shares]
    values = [sum(map(operator.mul, row, factors)) % p for row in rows]
    return [value - p if value > p // 2 else value for value in values]


@pytest.mark.parametrize("params", [SMALL, SMALL_CNF, SMALL_31], ids=["shamir", "cnf", "31 bits"])
def test_any_threshold_of_shares_opens_the_update(params: RoundParameters) -> None:
    parts = Parts(params, sealed(params)[:])
    vector = update_of(params.dim)
    expected = np.rint(vector.astype(np.float64) * 2**FRACTION_BITS).astype(int).tolist()
    scale = 1
    if params.format is ShareFormat.CNF_SEEDED:
        scale = conversion_scale(params.scheme)
    shares = {holder: share(params, parts, holder) for holder in range(1, 6)}
    opened = [
        at_zero(params, {j: shares[j] for j in chosen}, scale)
        for chosen in itertools.combinations(shares, 3)
    ]
    assert all(values == opened[0] for values in opened)
    assert opened[0][: params.dim] == expected
    assert len(opened[0]) == params.length


@pytest.mark.parametrize("params", [LONG, LONG_CNF], ids=["shamir", "cnf"])
def test_shares_of_several_chunks_open_at_the_seams(params: RoundParameters) -> None:
    parts = Parts(params, sealed(params)[:])
    seams = np.array([0, 131_071, 131_072, 262_099, 262_100, 262_143, 262_144, -1])
    scale = 1 if params is LONG else conversion_scale(params.scheme)
    shares = {holder: share(params, parts, holder)[seams] for holder in range(1, 6)}
    opened = at_zero(params, {j: shares[j] for j in (1, 3, 5)}, scale)
    assert opened == at_zero(params, {j: shares[j] for j in (2, 3, 4)}, scale)
    vector = update_of(params.dim)[seams[:4]].astype(np.float64)
    assert opened[:4] == np.rint(vector * 2**FRACTION_BITS).astype(int).tolist()


@pytest.mark.parametrize("cut_bytes", [1000, 1 << 20, (1 << 20) + 16, 1 << 30])
def test_an_honest_body_passes_however_it_is_cut(cut_bytes: int) -> None:
    for holder in (3, 4, 5):
        check_body(LONG, LONG_PARTS, LONG_PARTS.chunks(holder), holder=holder, cut_bytes=cut_bytes)


def test_honest_replicated_and_short_bodies_pass() -> None:
    for holder in (1, 2, 3):
        check_body(SMALL_CNF, PARTS_CNF, PARTS_CNF.chunks(holder), holder=holder)
    parts = Parts(SMALL_31, sealed(SMALL_31)[:])
    check_body(SMALL_31, parts, parts.chunks(3), holder=3)
    long = Parts(LONG_CNF, sealed(LONG_CNF)[:])
    check_body(LONG_CNF, long, long.chunks(1), holder=1, cut_bytes=700_000)


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda chunks: chunks[:-1], id="truncated at a chunk"),
        pytest.param(lambda chunks: [*chunks[:-1], chunks[-1][:-1]], id="truncated in a chunk"),
        pytest.param(lambda _: [], id="empty"),
        pytest.param(lambda chunks: [chunks[1], chunks[0], chunks[2]], id="swapped"),
        pytest.param(lambda chunks: [chunks[0], chunks[0], chunks[2]], id="repeated"),
        pytest.param(lambda chunks: [*chunks, b"x"], id="longer"),
        pytest.param(lambda chunks: [bytes(len(chunks[0])), *chunks[1:]], id="zeros"),
        pytest.param(lambda chunks: [*chunks[:2], chunks[2][:-1] + b"\0"], id="tag changed"),
    ],
)
def test_a_damaged_body_is_refused(tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(SealBrokenError):
        check_body(LONG, LONG_PARTS, tamper(LONG_PARTS.chunks(EXPLICIT)))


def test_the_body_of_another_holder_is_refused() -> None:
    with pytest.raises(SealBrokenError):
        check_body(SMALL, PARTS, PARTS.chunks(5), holder=4)


def test_a_chunk_of_another_update_is_refused() -> None:
    other = Parts(LONG, sealed(LONG, seed=9)[:])
    mixed = [LONG_PARTS.chunks(EXPLICIT)[0], *other.chunks(EXPLICIT)[1:]]
    with pytest.raises(SealBrokenError):
        check_body(LONG, LONG_PARTS, mixed)


def reencrypted(
    params: RoundParameters, parts: Parts, change: Callable[[np.ndarray], None]
) -> tuple[bytes, VerifiedHeader]:
    """Return a body of one chunk that its dishonest device changed and committed to."""
    holder = 1 if params.format is ShareFormat.CNF_SEEDED else EXPLICIT
    key = keys_of(params, parts, holder).content_key
    assert key is not None
    nonce = bytes(11) + b"\1"
    plaintext = AESGCM(key).decrypt(nonce, parts.chunks(holder)[0], None)
    words = np.frombuffer(plaintext, params.field.wire_dtype).copy()
    change(words)
    body = AESGCM(key).encrypt(nonce, words.tobytes(), None)

    def commit(header: pb.SharedHeader) -> None:
        if params.format is ShareFormat.CNF_SEEDED:
            header.body_sha256[0] = sha256(body)
        else:
            header.body_sha256[holder - 3] = sha256(body[-TAG_BYTES:])

    return body, resigned(parts, commit)


@pytest.mark.parametrize("field_bits", [61, 31])
@pytest.mark.parametrize("above", [0, 1])
def test_a_word_that_is_no_field_element_is_refused(field_bits: int, above: int) -> None:
    params = SMALL if field_bits == 61 else SMALL_31
    parts = Parts(params, sealed(params)[:])

    def put(words: np.ndarray) -> None:
        words[-1] = params.field.modulus + above

    body, header = reencrypted(params, parts, put)
    with pytest.raises(OutOfRangeWordError):
        check_body(params, parts, [body], header=header)


@pytest.mark.parametrize("params", [SMALL, SMALL_CNF], ids=["shamir", "cnf"])
def test_the_largest_field_element_is_accepted(params: RoundParameters) -> None:
    parts = Parts(params, sealed(params)[:])

    def put(words: np.ndarray) -> None:
        words[-1] = params.field.modulus - 1

    body, header = reencrypted(params, parts, put)
    holder = 1 if params is SMALL_CNF else EXPLICIT
    check_body(params, parts, [body], header=header, holder=holder)


@pytest.mark.parametrize("params", [SMALL, SMALL_CNF], ids=["shamir", "cnf"])
def test_a_body_that_the_header_does_not_name_is_refused(params: RoundParameters) -> None:
    parts = Parts(params, sealed(params)[:])

    def put(words: np.ndarray) -> None:
        words[0] ^= 1

    body, _ = reencrypted(params, parts, put)
    with pytest.raises(CommitmentMismatchError, match="body_sha256"):
        check_body(params, parts, [body], holder=1 if params is SMALL_CNF else EXPLICIT)


def gf128_product(left: int, right: int) -> int:
    """Multiply as GCM does: bit 127 is the coefficient of 1 (NIST SP 800-38D, 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = (right >> 1) ^ (0xE1 << 120 if right & 1 else 0)
    return product


def test_two_texts_under_one_tag_are_told_apart_in_cnf_seeded_rounds() -> None:
    # GCM's tag is linear in the ciphertext for a known key: whoever has the key, such as the
    # device, changes two blocks so that the tag stays. Tags alone would let it tell two holders
    # different texts.
    key = keys_of(SMALL_CNF, PARTS_CNF, 1).content_key
    assert key is not None
    body = bytearray(PARTS_CNF.chunks(1)[0])
    nonce = bytes(11) + b"\1"
    plaintext = AESGCM(key).decrypt(nonce, bytes(body), None)
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    hash_key = int.from_bytes(encryptor.update(bytes(16)), "big")
    # A change of one block is undone in the next, where it weighs one power of the hash key less.
    # Of the many, take one that leaves the upper three bits of both words: all stay elements.
    upper_bits = 0xE0 << 64 | 0xE0
    changes = ((small << 112, gf128_product(small << 112, hash_key)) for small in range(1, 1 << 16))
    differences = next(pair for pair in changes if not pair[1] & upper_bits)
    for block, difference in enumerate(differences):
        part = slice(16 * block, 16 * block + 16)
        body[part] = (int.from_bytes(body[part], "big") ^ difference).to_bytes(16, "big")
    assert AESGCM(key).decrypt(nonce, bytes(body), None) != plaintext
    check = BodyCheck(SMALL_CNF, keys_of(SMALL_CNF, PARTS_CNF, 2), PARTS_CNF.header, 2)
    check.feed(bytes(body))
    with pytest.raises(CommitmentMismatchError):
        check.finish()


def test_a_holder_without_a_body_gets_none() -> None:
    keys = keys_of(SMALL, PARTS, 1)
    with pytest.raises(MalformedMessageError, match="no body"):
        BodyCheck(SMALL, keys, PARTS.header, 1)
    with pytest.raises(MalformedMessageError):
        SharePieces(SMALL, keys, 1, PARTS.chunks(3).__getitem__)
    with pytest.raises(MalformedMessageError):
        SharePieces(SMALL, keys_of(SMALL, PARTS, 3), 3, None)


def test_a_stored_body_that_was_damaged_is_noticed() -> None:
    chunks = [bytes(len(chunk)) for chunk in PARTS.chunks(3)]
    pieces = SharePieces(SMALL, keys_of(SMALL, PARTS, 3), 3, chunks.__getitem__)
    with pytest.raises(SealBrokenError):
        list(pieces.chunks())
    short = SharePieces(SMALL, keys_of(SMALL, PARTS, 3), 3, lambda _: b"short")
    with pytest.raises(SealBrokenError):
        list(short.chunks())


def test_the_frame_of_another_holder_is_refused() -> None:
    with pytest.raises(WrongHolderError):
        keys_of(SMALL, PARTS, 2, frame=PARTS.frame(1))


def test_a_frame_that_the_header_does_not_name_is_refused() -> None:
    other = Parts(SMALL, sealed(SMALL, seed=9)[:])
    for frame in (other.frame(2), b"", PARTS.frame(2)[:-1]):
        with pytest.raises(CommitmentMismatchError, match="frame_sha256"):
            keys_of(SMALL, PARTS, 2, frame=frame)


def test_a_device_that_sends_one_holder_the_frame_of_another_is_refused() -> None:
    def swap(header: pb.SharedHeader) -> None:
        header.frame_sha256[1] = header.frame_sha256[0]

    with pytest.raises(SealBrokenError):
        keys_of(SMALL, PARTS, 2, frame=PARTS.frame(1), header=resigned(PARTS, swap))


def test_a_frame_under_another_nonce_does_not_open() -> None:
    header = resigned(PARTS, lambda header: setattr(header, "nonce", b"x" * 16))
    with pytest.raises(SealBrokenError):
        keys_of(SMALL, PARTS, 2, header=header)


def sealed_frame(params: RoundParameters, parts: Parts, holder: int, plaintext: bytes) -> bytes:
    info = frame_info(
        params_sha256=params.sha256,
        device_id="phone-1",
        holder=holder,
        nonce=parts.header.header.nonce,
    )
    return seal_to(COMMITTEE.identity(holder), plaintext, info)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_frame_of_another_length_is_refused(size: int) -> None:
    frame = sealed_frame(SMALL, PARTS, 2, bytes(size))

    def commit(header: pb.SharedHeader) -> None:
        header.frame_sha256[1] = sha256(frame)

    with pytest.raises(SealBrokenError, match="must hold 32 bytes"):
        keys_of(SMALL, PARTS, 2, frame=frame, header=resigned(PARTS, commit))


def test_a_piece_that_differs_between_holders_is_refused() -> None:
    # The device gives holder 2 another seed for one piece: the signed list of hashes is one.
    plaintext = random.Random(1).randbytes(32 * 6)
    frame = sealed_frame(SMALL_CNF, PARTS_CNF, 2, plaintext)

    def commit(header: pb.SharedHeader) -> None:
        header.frame_sha256[1] = sha256(frame)

    with pytest.raises(CommitmentMismatchError, match="piece_sha256"):
        keys_of(SMALL_CNF, PARTS_CNF, 2, frame=frame, header=resigned(PARTS_CNF, commit))


def test_replicated_keys_are_the_same_for_all_who_hold_them() -> None:
    held = {j: keys_of(SMALL_CNF, PARTS_CNF, j) for j in range(1, 6)}
    for piece, lacking in enumerate(SMALL_CNF.scheme.excluded_sets[:-1]):
        seeds = {keys.seeds.get(piece) for j, keys in held.items() if j not in lacking}
        assert len(seeds) == 1
        assert None not in seeds
        assert all(piece not in held[j].seeds for j in lacking)
    assert len({held[j].content_key for j in (1, 2, 3)}) == 1
    assert held[4].content_key is None
    assert held[5].content_key is None


def test_a_header_replayed_in_another_round_is_refused() -> None:
    with pytest.raises(WrongRoundParametersError):
        keys_of(make_round(round=8), PARTS, 2)


def test_a_piece_carried_over_from_another_round_does_not_open() -> None:
    # The device signs a new header over frames that were sealed in the round before.
    later = make_round(round=8)
    header = resigned(PARTS, lambda header: setattr(header, "params_sha256", later.sha256))
    with pytest.raises(SealBrokenError):
        keys_of(later, PARTS, 2, header=header)


def test_a_share_expands_differently_in_every_round() -> None:
    keys = keys_of(SMALL, PARTS, 1)
    first = next(SharePieces(SMALL, keys, 1, None).chunks())[1]
    second = next(SharePieces(make_round(round=8), keys, 1, None).chunks())[1]
    assert not np.any(first == second)


def test_a_stale_header_is_refused() -> None:
    header = resigned(PARTS, lambda header: setattr(header, "model_version", 3))
    with pytest.raises(WrongRoundParametersError):
        keys_of(SMALL, PARTS, 2, header=header)


def test_a_holder_outside_the_round_is_refused() -> None:
    for holder in (0, 6):
        with pytest.raises(SecurityError):
            open_frame(SMALL, HOLDERS[0], holder, PARTS.header, PARTS.frame(1))


def test_keys_do_not_show_themselves() -> None:
    keys = keys_of(SMALL_CNF, PARTS_CNF, 1)
    shown = repr(keys)
    assert keys.content_key is not None
    for secret in (*keys.seeds.values(), keys.content_key):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


@looped("part", ["header", "signature", "certificate", "frame", "body"])
@looped("params", [SMALL, SMALL_CNF], ids=["shamir", "cnf"])
def test_any_flipped_bit_is_refused(params: RoundParameters, part: str) -> None:
    parts = Parts(params, sealed(params)[:])
    holder = 3
    draw = random.Random(part)

    def flipped(name: str, data: bytes) -> bytes:
        if name != part:
            return data
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    def accept() -> None:
        signed = pb.SignedHeader(
            header=flipped("header", parts.prefix.header.header),
            signature=flipped("signature", parts.prefix.header.signature),
            certificate=flipped("certificate", parts.prefix.header.certificate),
        )
        header = AUTHORITY.verify(signed, now_s=NOW_S)
        frame = flipped("frame", parts.frame(holder))
        keys = open_frame(params, HOLDERS[holder - 1], holder, header, frame)
        check = BodyCheck(params, keys, header, holder)
        check.feed(flipped("body", parts.chunks(holder)[0]))
        check.finish()

    for _ in range(20):
        with pytest.raises(SharedRoundError):
            accept()
    part = "none"
    accept()
