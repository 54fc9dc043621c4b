"""The sharing written a second time, in plain integers and from the definitions, to compare with.

Nothing here comes from the package under test: polynomials are evaluated and interpolated with
fractions mod p, the keystream is AES of one counter block after the other.

    .venv/bin/python -m tests.security.secret_sharing.oracle

prints the published vectors of `tests/vectors/secret_sharing.json`.
"""

import hashlib
import hmac
import json
import sys
from itertools import combinations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

SCHEMES = ((2, 3), (2, 5), (3, 5), (3, 7))
LENGTHS = (20, 700)
PARAMS_SHA256 = hashlib.sha256(b"parameters of the published vectors").digest()
DEVICE_ID = "device-é-1"


def modulus(bits: int) -> int:
    return (1 << bits) - 1


def word_bytes(bits: int) -> int:
    return {7: 1, 31: 4, 61: 8}[bits]


def wire(words: list[int], bits: int) -> bytes:
    return b"".join(word.to_bytes(word_bytes(bits), "little") for word in words)


def derive_key(seed: bytes, piece: int) -> bytes:
    name = DEVICE_ID.encode("utf-8")
    message = b"fedagg/expand/1\x00" + PARAMS_SHA256 + len(name).to_bytes(4, "little") + name
    return hmac.new(seed, message + piece.to_bytes(4, "little"), hashlib.sha256).digest()


def expand(key: bytes, bits: int, length: int) -> list[int]:
    size, p = word_bytes(bits), modulus(bits)
    if length <= 512:
        stream = hashlib.shake_128(key).digest(size * length)
    else:
        aes = Cipher(AES(key), ECB()).encryptor()  # noqa: S305  # of counters: CTR by hand
        blocks = -(-size * length // 16)
        stream = b"".join(aes.update(i.to_bytes(16, "big")) for i in range(blocks))
    words = []
    for i in range(length):
        word = int.from_bytes(stream[i * size : (i + 1) * size], "little") & p
        if word == p:
            again = hashlib.shake_128(key + b"rej" + i.to_bytes(8, "little")).digest(size * 1000)
            tried = (again[k : k + size] for k in range(0, len(again), size))
            word = next(w for w in (int.from_bytes(t, "little") & p for t in tried) if w != p)
        words.append(word)
    return words


def lagrange_at(points: dict[int, int], x: int, p: int) -> int:
    """Evaluate at x the polynomial of least degree through {point: value}."""
    total = 0
    for j, value in points.items():
        weight = 1
        for i in points:
            if i != j:
                weight = weight * (x - i) * pow(j - i, -1, p) % p
        total += weight * value
    return total % p


def seeded(
    secret: list[int], seeds: list[bytes], scheme: tuple[int, int], bits: int
) -> dict[int, list[int]]:
    t, n = scheme
    p = modulus(bits)
    shares = {
        holder: expand(derive_key(seeds[holder - 1], holder), bits, len(secret))
        for holder in range(1, t)
    }
    for holder in range(t, n + 1):
        shares[holder] = [
            lagrange_at({0: x, **{j: shares[j][i] for j in range(1, t)}}, holder, p)
            for i, x in enumerate(secret)
        ]
    return shares


def sets(scheme: tuple[int, int]) -> list[tuple[int, ...]]:
    t, n = scheme
    return list(combinations(range(1, n + 1), t - 1))


def cnf_pieces(
    secret: list[int], seeds: list[bytes], scheme: tuple[int, int], bits: int
) -> list[list[int]]:
    p = modulus(bits)
    pieces = [
        expand(derive_key(seeds[i], i), bits, len(secret)) for i in range(len(sets(scheme)) - 1)
    ]
    rest = [(x - sum(piece[i] for piece in pieces)) % p for i, x in enumerate(secret)]
    return [*pieces, rest]


def converted(
    pieces: list[list[int]], holder: int, scheme: tuple[int, int], bits: int
) -> list[int]:
    """Give the unscaled Shamir share: sum over A of r_A f_A(holder)."""
    p = modulus(bits)
    share = [0] * len(pieces[0])
    for lacking, piece in zip(sets(scheme), pieces, strict=True):
        if holder not in lacking:
            # f_A: 1 at 0, 0 at the members of A.
            weight = lagrange_at({0: 1, **dict.fromkeys(lacking, 0)}, holder, p)
            share = [(s + weight * r) % p for s, r in zip(share, piece, strict=True)]
    return share


def summary(words: list[int], bits: int) -> dict[str, object]:
    """Say enough about a vector to compare it: its first words and the digest of all."""
    digest = hashlib.sha256(wire(words, bits)).hexdigest()
    return {"first": [str(word) for word in words[:3]], "sha256": digest}


def seeds_of(count: int) -> list[bytes]:
    return [hashlib.sha256(f"seed {i}".encode()).digest() for i in range(count)]


def secret_of(bits: int, length: int) -> list[int]:
    p = modulus(bits)
    chosen = [0, 1, p - 1, p // 2, p // 2 + 1]
    return chosen + [pow(3, 7 * i + 1, p) for i in range(length - len(chosen))]


def vectors() -> list[dict[str, object]]:
    cases: list[dict[str, object]] = []
    for bits in (31, 61):
        for scheme in SCHEMES:
            for length in LENGTHS:
                secret = secret_of(bits, length)
                seeds = seeds_of(len(sets(scheme)))
                shares = seeded(secret, seeds, scheme, bits)
                pieces = cnf_pieces(secret, seeds, scheme, bits)
                points = range(1, scheme[1] + 1)
                cases.append(
                    {
                        "bits": bits,
                        "threshold": scheme[0],
                        "holders": scheme[1],
                        "length": length,
                        "secret": summary(secret, bits),
                        "key_of_piece_1": derive_key(seeds[0], 1).hex(),
                        "shamir_seeded": {str(j): summary(shares[j], bits) for j in points},
                        "cnf_pieces": [summary(piece, bits) for piece in pieces],
                        "cnf_converted": {
                            str(j): summary(converted(pieces, j, scheme, bits), bits)
                            for j in points
                        },
                    }
                )
    return cases


if __name__ == "__main__":
    sys.stdout.write(json.dumps(vectors(), indent=1) + "\n")
