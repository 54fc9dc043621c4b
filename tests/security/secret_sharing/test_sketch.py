import hashlib
import hmac
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from security.errors import SharingError
from security.secret_sharing import arithmetic, fixed_point
from security.secret_sharing.field import M31, M61, MersenneField, Words
from security.secret_sharing.reconstruction import reconstruct
from security.secret_sharing.sketch import Sketch
from security.secret_sharing.threshold import Threshold
from tests.looped import looped
from tests.security.secret_sharing import oracle
from tests.security.secret_sharing.sharings import by_seeds, from_seed

KEY = bytes(range(32))


def words(field: MersenneField, length: int, seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, field.modulus, length, dtype=np.uint64)


def defined(key: bytes, vector: list[int], k: int, copies: int) -> list[list[int]]:
    """Sketch integers as the docstring says."""
    signs_key = hmac.new(key, b"fedagg/sketch/1\0signs", hashlib.sha256).digest()
    shifts_key = hmac.new(key, b"fedagg/sketch/1\0shifts", hashlib.sha256).digest()
    blocks = -(-len(vector) // k)
    signs = Cipher(AES(signs_key), CTR(bytes(16))).encryptor().update(bytes(len(vector)))
    shifts = oracle.expand(shifts_key, 61, copies * blocks)
    rows = [[0] * k for _ in range(copies)]
    for c in range(copies):
        for i, value in enumerate(vector):
            bucket = (i % k + shifts[c * blocks + i // k] % k) % k
            rows[c][bucket] += -value if signs[i] >> c & 1 else value
    return rows


@pytest.mark.parametrize("field", [MersenneField(7), M31, M61], ids=lambda field: f"{field.bits}")
@looped("dim, k", [(1, 4), (1000, 64), (1025, 16), (777, 50)])
def test_sketches_are_those_of_the_definition(field: MersenneField, dim: int, k: int) -> None:
    vector = words(field, dim)
    expected = defined(KEY, [int(word) for word in vector], k, 3)
    sketch = Sketch(KEY, field=field, dim=dim, sketch_dim=k, copies=3)
    found = sketch.of([(0, vector)])
    assert found.tolist() == [[value % field.modulus for value in row] for row in expected]


def test_chunks_and_their_order_do_not_matter_and_the_rest_is_left_out() -> None:
    vector = words(M61, 5000)
    sketch = Sketch(KEY, field=M61, dim=4000, sketch_dim=128)
    cuts = [0, 1, 127, 128, 1000, 3999, 4500, 5000]
    chunks = [(a, vector[a:b]) for a, b in pairwise(cuts)]
    whole = sketch.of([(0, vector[:4000])])
    np.testing.assert_array_equal(sketch.of(chunks[::-1]), whole)
    np.testing.assert_array_equal(sketch.of([(0, vector)]), whole)


def test_the_sketch_of_shares_opens_to_the_sketch_of_the_secret() -> None:
    scheme = Threshold(3, 5)
    values = np.random.default_rng(1).uniform(-1, 1, 3000).astype(np.float32)
    secret = fixed_point.encode(values, fraction_bits=20, field=M61)
    sketch = Sketch(KEY, field=M61, dim=3000, sketch_dim=256)
    shares = {
        holder: sketch.of([(0, share)]).reshape(-1)
        for holder, share in by_seeds(M61, scheme, secret, from_seed(2)).items()
    }
    opened = fixed_point.centered(reconstruct(M61, shares, degree=2).values, M61)
    integers = fixed_point.centered(secret, M61).tolist()
    assert opened.reshape(2, 256).tolist() == defined(KEY, integers, 256, 2)


def test_squared_lengths_are_kept_within_the_bound() -> None:
    k, trials = 64, 400
    values = np.random.default_rng(2).standard_normal(1500).astype(np.float32)
    vector = fixed_point.encode(values, fraction_bits=10, field=M61)
    exact = float((fixed_point.centered(vector, M61).astype(float) ** 2).sum())
    ratios = []
    for trial in range(trials // 2):
        key = hashlib.sha256(f"{trial}".encode()).digest()
        sketch = Sketch(key, field=M61, dim=1500, sketch_dim=k).of([(0, vector)])
        centred = fixed_point.centered(sketch.reshape(-1), M61).reshape(2, k).astype(float)
        ratios.extend((centred**2).sum(axis=1) / exact)
    # Mean 1 with variance at most 2 / k each: six standard deviations of the mean of all.
    assert abs(np.mean(ratios) - 1) < 6 * np.sqrt(2 / k / trials)
    assert np.var(ratios) < 1.5 * 2 / k
    copies = np.array(ratios).reshape(-1, 2)
    assert abs(np.corrcoef(copies.T)[0, 1]) < 6 / np.sqrt(trials / 2)


def test_a_sketch_is_linear() -> None:
    a, b = words(M61, 900, 1), words(M61, 900, 2)
    sketch = Sketch(KEY, field=M61, dim=900, sketch_dim=32)
    total = a.copy()
    arithmetic.add_into(M61, total, b, -7)
    expected = sketch.of([(0, a)]).reshape(-1)
    arithmetic.add_into(M61, expected, sketch.of([(0, b)]).reshape(-1), -7)
    np.testing.assert_array_equal(sketch.of([(0, total)]).reshape(-1), expected)


@pytest.mark.parametrize(("dim", "k", "copies"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 9)])
def test_arguments_out_of_range_are_refused(dim: int, k: int, copies: int) -> None:
    with pytest.raises(SharingError, match=f"dim={dim} and sketch_dim={k} must be at least 1"):
        Sketch(KEY, field=M61, dim=dim, sketch_dim=k, copies=copies)


def test_a_negative_start_is_refused() -> None:
    sketch = Sketch(KEY, field=M61, dim=10, sketch_dim=4)
    with pytest.raises(SharingError, match="start=-1"):
        sketch.add(sketch.empty(), -1, words(M61, 3))
