import mpmath  # type: ignore[import-untyped]  # no types
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privacy import plain_sampling
from privacy.sampling_table import sampling_table

WORDS = st.integers(0, 2**64 - 1)


@given(WORDS, WORDS)
def test_the_high_half_of_a_product_is_exact(a: int, b: int) -> None:
    words = np.array([a], np.uint64), np.array([b], np.uint64)
    assert int(plain_sampling.high_product(*words)[0]) == a * b >> 64


@given(st.integers(0, 2**56 - 1))
def test_the_exponential_is_within_the_stated_error(rest: int) -> None:
    got = int(plain_sampling.one_minus_exp(np.array([rest], np.uint64))[0])
    with mpmath.workdps(40):
        exact = -mpmath.expm1(-mpmath.mpf(rest) / 2**64) * 2**64
        assert abs(got - exact) < 1.1


def test_an_attempt_follows_the_three_steps() -> None:
    table = sampling_table(64.0)  # steps of 4
    half = int(table.thresholds[0]) // 2
    words = [
        half, 2, 0,  # k = 0, u = 2, accepted
        half, 3 | 1 << 63, 0,  # the same with the other sign
        half, 0, 0,  # zero
        half, 1 << 63, 0,  # minus zero: refused
        int(table.thresholds[0]), 1, 0,  # k = 1
        2**64 - 1, 0, 2**64 - 1,  # u = 0 is accepted always
        half, 1, 2**64 - 1,  # e^-g is below 1: refused
    ]  # fmt: skip
    out = np.full(9, 99, np.int64)
    assert plain_sampling.attempt(out, np.array(words, np.uint64), table) == 5
    last = len(table.thresholds) << 2
    assert out.tolist() == [2, -3, 0, 5, last, 99, 99, 99, 99]
