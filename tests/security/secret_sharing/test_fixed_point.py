from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import SharingError
from security.secret_sharing import fixed_point
from security.secret_sharing.field import M31, M61, MersenneField
from security.secret_sharing.kernels.choice import COMPILED, PLAIN

BACKENDS = [import_module(name) for name in (PLAIN, COMPILED)]
values = st.floats(-1000.0, 1000.0, width=32)


@pytest.fixture(params=BACKENDS, ids=lambda loops: loops.NAME)
def _each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_point, "kernels", lambda: request.param)


@given(st.lists(values, max_size=30), st.integers(0, 20), st.sampled_from([M31, M61]))
def test_every_value_comes_back_within_half_a_unit(
    numbers: list[float], fraction_bits: int, field: MersenneField
) -> None:
    bits = min(fraction_bits, 20 if field is M31 else 52)
    array = np.array(numbers, dtype=np.float32)
    words = fixed_point.encode(array, fraction_bits=bits, field=field)
    # Python rounds fractions to the nearest, ties to even.
    expected = [round(Fraction(float(x)) * 2**bits) for x in array]
    assert [int(word) for word in words] == [q % field.modulus for q in expected]
    assert fixed_point.centered(words, field).tolist() == expected
    decoded = fixed_point.decode(words, fraction_bits=bits, field=field)
    np.testing.assert_allclose(decoded, array.astype(np.float64), rtol=0, atol=2.0 ** -(bits + 1))


def test_twenty_bits_are_within_a_millionth() -> None:
    array = np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32)
    words = fixed_point.encode(array, fraction_bits=20, field=M61)
    decoded = fixed_point.decode(words, fraction_bits=20, field=M61)
    assert np.abs(decoded - array).max() < 5e-7


@pytest.mark.usefixtures("_each_backend")
def test_ties_go_to_the_even_integer() -> None:
    array = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    words = fixed_point.encode(array, fraction_bits=0, field=M31)
    assert fixed_point.centered(words, M31).tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.usefixtures("_each_backend")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1024.0, -1024.0, 3e38])
def test_what_does_not_fit_is_refused_by_its_position(bad: float) -> None:
    array = np.zeros(20_000, np.float32)
    array[16_500] = bad
    with pytest.raises(SharingError, match="value 16500 must be finite and below 1024 in magni"):
        fixed_point.encode(array, fraction_bits=20, field=M31)


@pytest.mark.usefixtures("_each_backend")
@pytest.mark.parametrize(("field", "bits"), [(M31, 30), (M61, 60)])
def test_the_largest_integer_that_fits_is_encoded(field: MersenneField, bits: int) -> None:
    largest = float(np.nextafter(np.float32(2.0**bits), np.float32(0)))
    array = np.array([largest, -largest], np.float32)
    words = fixed_point.encode(array, fraction_bits=0, field=field)
    assert fixed_point.centered(words, field).tolist() == [int(largest), -int(largest)]


def test_a_sum_that_no_float_holds_is_refused() -> None:
    for integer in (1 << 53, -(1 << 53)):
        words = np.array([0, M61.reduce(integer)], dtype=np.uint64)
        with pytest.raises(SharingError, match="integer 1 must be below 2"):
            fixed_point.decode(words, fraction_bits=20, field=M61)
    words = np.array([(1 << 53) - 1], dtype=np.uint64)
    assert fixed_point.decode(words, fraction_bits=0, field=M61)[0] == float((1 << 53) - 1)


def test_the_result_may_go_to_a_vector_at_hand() -> None:
    out = np.zeros(3, np.uint64)
    values = np.array([1, -1, 0.5], np.float32)
    assert fixed_point.encode(values, fraction_bits=1, field=M61, out=out) is out
    assert out.tolist() == [2, M61.modulus - 2, 1]
    with pytest.raises(SharingError, match=r"out must have shape \(3,\), got \(2,\)"):
        fixed_point.encode(values, fraction_bits=1, field=M61, out=out[:2])


def test_the_arguments_are_checked() -> None:
    with pytest.raises(SharingError, match=r"fraction_bits=53 must be in 0\.\.52"):
        fixed_point.encode(np.zeros(1, np.float32), fraction_bits=53, field=M61)
    with pytest.raises(SharingError, match="one float32 vector, got float64"):
        fixed_point.encode(np.zeros(1), fraction_bits=1, field=M61)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(SharingError, match=r"of shape \(1, 1\)"):
        fixed_point.encode(np.zeros((1, 1), np.float32), fraction_bits=1, field=M61)
