"""Chunks sealed as a stream: against the AEAD itself, and against every rearrangement."""

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.errors import SealBrokenError
from security.shared_round.terms.parameter_fields import CHUNK_BYTES, TAG_BYTES
from security.shared_round.update.sealing import ChunkCipher, frame_info, num_chunks

KEY = random.Random(1).randbytes(32)
TEXTS = [random.Random(seed).randbytes(100) for seed in range(3)]


def sealed(chunk: int, *, chunks: int = 3, key: bytes = KEY, text: bytes | None = None) -> bytes:
    plaintext = TEXTS[chunk] if text is None else text
    out = bytearray(len(plaintext) + TAG_BYTES)
    ChunkCipher(key, chunks=chunks).seal_into(chunk, plaintext, memoryview(out))
    return bytes(out)


def opened(chunk: int, ciphertext: bytes, *, chunks: int = 3, key: bytes = KEY) -> bytes:
    out = bytearray(max(0, len(ciphertext) - TAG_BYTES))
    ChunkCipher(key, chunks=chunks).open_into(chunk, ciphertext, memoryview(out))
    return bytes(out)


def test_chunks_open_in_their_places_in_any_order() -> None:
    for chunk in (2, 0, 1):
        assert opened(chunk, sealed(chunk)) == TEXTS[chunk]


@pytest.mark.parametrize(("chunk", "last"), [(0, 0), (1, 0), (2, 1)])
def test_a_chunk_is_aes_gcm_under_the_documented_nonce(chunk: int, last: int) -> None:
    nonce = bytes(7) + chunk.to_bytes(4, "big") + bytes([last])
    assert sealed(chunk) == AESGCM(KEY).encrypt(nonce, TEXTS[chunk], None)


def test_a_chunk_opens_nowhere_else() -> None:
    for place in (1, 2):
        with pytest.raises(SealBrokenError, match=f"chunk {place}"):
            opened(place, sealed(0))


def test_a_body_cut_at_a_chunk_does_not_open() -> None:
    # The second chunk of three poses as the last of two.
    with pytest.raises(SealBrokenError):
        opened(1, sealed(1, chunks=3), chunks=2)


def test_a_changed_chunk_does_not_open() -> None:
    good = sealed(0)
    for at in (0, 50, len(good) - TAG_BYTES, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 0x80
        with pytest.raises(SealBrokenError):
            opened(0, bytes(bad))
    for bad_length in (good[:-1], good[:TAG_BYTES], good[:3], b""):
        with pytest.raises(SealBrokenError):
            opened(0, bad_length)
    with pytest.raises(SealBrokenError):
        opened(0, good, key=bytes(32))


@pytest.mark.parametrize(
    ("plaintext_bytes", "chunks"),
    [(1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (3 * CHUNK_BYTES, 3)],
)
def test_lengths_follow_from_the_plaintext(plaintext_bytes: int, chunks: int) -> None:
    assert num_chunks(plaintext_bytes) == chunks


def test_no_two_contexts_are_the_same() -> None:
    contexts = {
        frame_info(params_sha256=bytes(32), device_id=device, holder=holder, nonce=nonce)
        for device in ("a", "b", "aa")
        for holder in (1, 2, 0x61)
        for nonce in (bytes(16), b"a" * 16)
    }
    assert len(contexts) == 18
