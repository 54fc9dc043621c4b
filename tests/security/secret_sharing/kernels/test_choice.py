"""The compiled and the plain loops against each other and against Python's integers."""

import builtins
import subprocess
import sys
from importlib import import_module
from typing import cast

import numpy as np
import pytest

from security.secret_sharing.field import M31, M61, MersenneField, Words
from security.secret_sharing.kernels.choice import COMPILED, PLAIN, Kernels, kernels
from tests.looped import looped

M7 = MersenneField(7)
FIELDS = (M7, M31, M61)
BACKENDS = [cast("Kernels", import_module(name)) for name in (PLAIN, COMPILED)]
LENGTHS = (0, 1, 7, 513, 16_385)

both = pytest.mark.parametrize("loops", BACKENDS, ids=lambda loops: loops.NAME)
every_field = pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.bits}")


def words(field: MersenneField, length: int, seed: int) -> Words:
    """Draw elements, the extremes among them."""
    drawn = np.random.default_rng(seed).integers(0, field.modulus, length, dtype=np.uint64)
    if length > 6:
        drawn[:3] = field.modulus - 1
        drawn[3:5] = 0
        drawn[5] = field.modulus // 2
    return drawn


def integers(array: np.ndarray) -> list[int]:
    return [int(word) for word in array]


@both
@every_field
@pytest.mark.parametrize("length", LENGTHS)
def test_sums_and_products_are_those_of_integers(
    loops: Kernels, field: MersenneField, length: int
) -> None:
    p = field.modulus
    a, b = words(field, length, 1), words(field, length, 2)[::-1].copy()
    pairs = list(zip(integers(a), integers(b), strict=True))
    factor = np.uint64(p - 3)

    total = a.copy()
    loops.add(total, b, field.bits)
    assert integers(total) == [(x + y) % p for x, y in pairs]
    total = a.copy()
    loops.subtract(total, b, field.bits)
    assert integers(total) == [(x - y) % p for x, y in pairs]
    total = a.copy()
    loops.add_scaled(total, b, factor, field.bits)
    assert integers(total) == [(x + (p - 3) * y) % p for x, y in pairs]
    loops.multiply(total, a, b, field.bits)
    assert integers(total) == [x * y % p for x, y in pairs]
    loops.multiply(total, a, np.array([factor]), field.bits)
    assert integers(total) == [x * (p - 3) % p for x, _ in pairs]
    low, high = loops.dot(a, b, field.bits)
    assert (int(low) + (int(high) << 32)) % p == sum(x * y for x, y in pairs) % p


@both
@every_field
def test_all_largest_words_do_not_overflow(loops: Kernels, field: MersenneField) -> None:
    p = field.modulus
    largest = np.full(20_000, p - 1, np.uint64)
    low, high = loops.dot(largest, largest, field.bits)
    assert (int(low) + (int(high) << 32)) % p == 20_000 % p
    product = np.empty_like(largest)
    loops.multiply(product, largest, largest, field.bits)
    assert set(integers(product)) == {1}
    heavy = min((1 << 31) // 3 - 1, p // 2)
    weights = np.array([heavy, -heavy, heavy])
    loops.weighted_sum(
        product, np.stack([largest, np.zeros_like(largest), largest]), weights, field.bits
    )
    assert set(integers(product)) == {-2 * heavy % p}


@both
@every_field
@looped("length", LENGTHS)
def test_weighted_sums_are_those_of_integers(
    loops: Kernels, field: MersenneField, length: int
) -> None:
    p = field.modulus
    rows = np.stack([words(field, length + 3, seed) for seed in range(6)])
    limit = min(p // 2, 1 << 28)
    weights = np.array([1, -1, 3, -limit, limit, 0])
    out = np.empty(length, np.uint64)
    loops.weighted_sum(out, rows, weights, field.bits)
    expected = [
        sum(int(weight) * int(row[i]) for weight, row in zip(weights, rows, strict=True)) % p
        for i in range(length)
    ]
    assert integers(out) == expected


@both
@every_field
@pytest.mark.parametrize(("t", "n"), [(2, 2), (2, 5), (3, 3), (3, 5), (3, 7), (4, 7), (7, 7)])
def test_extrapolated_values_lie_on_the_polynomial(
    loops: Kernels, field: MersenneField, t: int, n: int
) -> None:
    p = field.modulus
    count = 600
    coefficients = np.stack([words(field, count, seed) for seed in range(t)])
    values = {
        x: [sum(int(c) * x**e for e, c in enumerate(column)) % p for column in coefficients.T]
        for x in range(n + 1)
    }
    shares = np.array([values[x] for x in range(1, t)], dtype=np.uint64).reshape(t - 1, count)
    for dtype in (np.dtype(np.uint64), field.wire_dtype):
        out = np.zeros((n - t + 1, count + 5), dtype)
        loops.extrapolate(out, 2, coefficients[0], shares, field.bits)
        assert [integers(row[2:-3]) for row in out] == [values[x] for x in range(t, n + 1)]
        assert not out[:, :2].any()
        assert not out[:, -3:].any()


@both
@every_field
@pytest.mark.parametrize(("t", "n"), [(2, 5), (3, 5), (3, 7)])
def test_extrapolation_masks_its_words_and_tells_of_the_one_that_is_no_element(
    loops: Kernels, field: MersenneField, t: int, n: int
) -> None:
    count = 600
    secret = words(field, count, 0)
    shares = np.stack([words(field, count, seed) for seed in range(1, t)])
    # The bits that masking takes off.
    highest = np.uint64(1 << (8 * field.word_bytes - 1))
    raw = (shares | highest).astype(field.wire_dtype)
    shape = (n - t + 1, count)
    expected, out = np.empty(shape, np.uint64), np.empty(shape, np.uint64)
    loops.extrapolate(expected, 0, secret, shares, field.bits)
    assert not loops.extrapolate_raw(out, 0, secret, raw, field.bits)
    assert np.array_equal(out, expected)
    raw[-1, 17] = field.modulus
    assert loops.extrapolate_raw(out, 0, secret, raw, field.bits)


@both
@every_field
def test_masking_tells_of_the_word_that_is_no_element(loops: Kernels, field: MersenneField) -> None:
    highest = 1 << (8 * field.word_bytes - 1)
    raw = np.array([0, 5, field.modulus - 1, highest], dtype=field.wire_dtype)
    out = np.empty(len(raw), np.uint64)
    assert not loops.mask(out, raw, field.bits)
    assert integers(out) == [0, 5, field.modulus - 1, highest & field.modulus]
    raw[1] = field.modulus
    assert loops.mask(out, raw, field.bits)
    assert out[1] == field.modulus


@both
@every_field
@looped("copies", [1, 3])
@looped("shape", [(8, 0, 1000), (7, 5, 23), (64, 63, 1)])
def test_a_fold_puts_every_word_into_its_bucket(
    loops: Kernels, field: MersenneField, copies: int, shape: tuple[int, int, int]
) -> None:
    buckets, first, count = shape
    p = field.modulus
    rng = np.random.default_rng(3)
    added = words(field, count, 4)
    signs = rng.integers(0, 256, count, dtype=np.uint8)
    blocks = -(-(first + count) // buckets)
    shifts = rng.integers(0, buckets, (copies, blocks), dtype=np.uint64)
    state = np.full((copies, buckets), p - 1, np.uint64)
    loops.fold_signed(state, added, (signs, shifts, first), field.bits)
    expected = [[p - 1] * buckets for _ in range(copies)]
    for copy in range(copies):
        for i, word in enumerate(integers(added)):
            block, column = divmod(first + i, buckets)
            bucket = (column + int(shifts[copy, block])) % buckets
            sign = -1 if int(signs[i]) >> copy & 1 else 1
            expected[copy][bucket] = (expected[copy][bucket] + sign * word) % p
    assert [integers(row) for row in state] == expected


def test_without_a_compiler_the_plain_loops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_numba(name: str, *args: object, **kwargs: object) -> object:
        if name == "numba":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    for name in (COMPILED, "security.secret_sharing.kernels.compiler", "numba"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", no_numba)
    assert kernels.__wrapped__().NAME == "numpy"


@pytest.mark.slow
def test_a_device_shares_with_nothing_but_numpy_and_cryptography() -> None:
    program = """
import sys
for name in ("numba", "torch", "scipy"):
    sys.modules[name] = None
import numpy as np
from security.secret_sharing import cnf, replicated_keys, sketch
from security.secret_sharing import fixed_point, reconstruction, seeded
from security.secret_sharing.arithmetic import backend
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import M61
from security.secret_sharing.threshold import Threshold
scheme = Threshold(3, 5)
secret = fixed_point.encode(np.ones(1000, np.float32), fraction_bits=20, field=M61)
chosen = [Expansion(bytes([i]) * 32, M61, 1000).words(0, 1000) for i in (1, 2)]
shares = [*chosen, *seeded.explicit_shares(M61, scheme, secret, chosen)]
opened = reconstruction.reconstruct(M61, dict(enumerate(shares, start=1)), degree=2)
print(backend(), (opened.values == 1 << 20).all())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["numpy", "True"]
