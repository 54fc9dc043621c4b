from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.secure import SecureAggregator
from security.errors import (
    InconsistentSharesError,
    OutOfRangeWordError,
    SharingError,
    TooFewSharesError,
)
from security.secret_sharing.field import M31, M61
from tests.looped import looped


def updates_of(num: int, dim: int, scale: float = 1.0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(dim)
    return [(scale * rng.standard_normal(dim)).astype(np.float32) for _ in range(num)]


def plain_sum(updates: list[NDArray[np.float32]], fraction_bits: int) -> NDArray[np.int64]:
    """Round and add without any sharing."""
    scaled = [np.rint(update.astype(np.float64) * 2.0**fraction_bits) for update in updates]
    total: NDArray[np.int64] = np.stack(scaled).astype(np.int64).sum(axis=0)
    return total


@given(
    scheme=st.sampled_from([(2, 3), (3, 5), (2, 5), (4, 6)]),
    shape=st.tuples(st.integers(1, 6), st.integers(0, 40)),
    fraction_bits=st.integers(0, 30),
    scale=st.sampled_from([1e-6, 1.0, 100.0]),
)
def test_any_threshold_of_holders_open_the_sum_bit_for_bit(
    scheme: tuple[int, int], shape: tuple[int, int], fraction_bits: int, scale: float
) -> None:
    aggregator = SecureAggregator(*scheme, fraction_bits=fraction_bits)
    updates = updates_of(*shape, scale)
    sums = aggregator.aggregate([aggregator.share(update) for update in updates])
    expected = plain_sum(updates, fraction_bits)
    for subset in combinations(range(1, scheme[1] + 1), scheme[0]):
        some = {holder: sums[holder] for holder in subset}
        assert aggregator.reconstruct_integers(some).tolist() == expected.tolist()
        opened = aggregator.reconstruct(some)
        assert (opened * 2.0**fraction_bits).tolist() == expected.astype(float).tolist()


@pytest.mark.parametrize("dim", [1, 512, 513, 40_000])
def test_a_mean_is_within_a_millionth(dim: int) -> None:
    aggregator = SecureAggregator()
    updates = updates_of(10, dim)
    sums = aggregator.aggregate([aggregator.share(update) for update in updates])
    mean = aggregator.reconstruct(sums) / len(updates)
    exact = np.mean([update.astype(np.float64) for update in updates], axis=0)
    assert np.abs(mean - exact).max() < 1e-6


def test_a_holder_can_add_up_alone() -> None:
    aggregator = SecureAggregator()
    shared = [aggregator.share(update) for update in updates_of(4, 50)]
    sums = aggregator.aggregate(shared)
    np.testing.assert_array_equal(aggregator.add_up([shares[2] for shares in shared]), sums[3])


def test_two_shares_of_one_update_are_unrelated() -> None:
    aggregator = SecureAggregator()
    update = updates_of(1, 20)[0]
    one, other = aggregator.share(update), aggregator.share(update)
    assert all(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_lying_holder_is_left_out_or_noticed() -> None:
    aggregator = SecureAggregator()
    updates = updates_of(3, 100)
    sums = aggregator.aggregate([aggregator.share(update) for update in updates])
    sums[4][7] ^= np.uint64(1)
    expected = plain_sum(updates, 20)
    np.testing.assert_array_equal(aggregator.reconstruct_integers(sums), expected)
    sums.pop(1)
    with pytest.raises(InconsistentSharesError):
        aggregator.reconstruct(sums)


def test_too_few_holders_open_nothing() -> None:
    aggregator = SecureAggregator()
    sums = aggregator.aggregate([aggregator.share(updates_of(1, 5)[0])])
    with pytest.raises(TooFewSharesError, match="at least 3 for degree 2, got 2"):
        aggregator.reconstruct({1: sums[1], 2: sums[2]})


def test_the_field_is_the_smallest_in_which_nothing_overflows() -> None:
    # 1023 updates of at most 1.0 in units of 2^-20 are just below 2^30.
    assert SecureAggregator(max_abs_value=1.0, max_num_updates=1023).field is M31
    assert SecureAggregator(max_abs_value=1.0, max_num_updates=1024).field is M61
    assert SecureAggregator(max_abs_value=1024.0, max_num_updates=(1 << 23) - 1).field is M61
    with pytest.raises(SharingError, match="must stay below 2"):
        SecureAggregator(max_abs_value=1024.0, max_num_updates=1 << 23)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_of_the_small_field_is_right(sign: int) -> None:
    aggregator = SecureAggregator(2, 3, max_abs_value=1.0, max_num_updates=1023)
    update = np.full(3, sign, np.float32)
    sums = aggregator.aggregate([aggregator.share(update)] * 1023)
    assert aggregator.reconstruct(sums).tolist() == [1023.0 * sign] * 3


def test_bounds_are_checked_where_they_matter() -> None:
    aggregator = SecureAggregator(2, 3, max_abs_value=1.0, max_num_updates=2)
    with pytest.raises(SharingError, match=r"max_abs_value=1\.0, got 1\.5"):
        aggregator.share(np.array([0.0, -1.5], np.float32))
    with pytest.raises(SharingError, match="value 0 must be finite"):
        aggregator.share(np.array([np.nan], np.float32))
    shares = aggregator.share(np.ones(2, np.float32))
    with pytest.raises(SharingError, match="shares must be 1 to 2, got 3"):
        aggregator.add_up([shares[0]] * 3)
    with pytest.raises(SharingError, match="shares must be 1 to 2, got 0"):
        aggregator.add_up([])
    with pytest.raises(SharingError, match="shares must be 3 a device, got 2"):
        aggregator.aggregate([shares[:2]])
    with pytest.raises(SharingError, match="one length"):
        aggregator.add_up([shares[0], shares[0][:1]])
    with pytest.raises(OutOfRangeWordError, match="word 1"):
        aggregator.add_up([np.array([0, aggregator.field.modulus], np.uint64)])
    too_large = np.full(1, 3 << 20, np.uint64)
    with pytest.raises(SharingError, match="sum must stay within"):
        aggregator.reconstruct({1: too_large, 2: too_large})
    with pytest.raises(SharingError, match="holder=4"):
        aggregator.reconstruct({1: too_large, 4: too_large})


@looped(
    "arguments, message",
    [
        ({"fraction_bits": 53}, "fraction_bits=53"),
        ({"max_abs_value": 0.0}, "max_abs_value=0.0"),
        ({"max_abs_value": float("nan")}, "max_abs_value=nan"),
        ({"max_num_updates": 0}, "max_num_updates=0"),
        ({"threshold": 1}, "threshold=1"),
        ({"num_holders": 8}, "holders=8"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(SharingError, match=message):
        SecureAggregator(**arguments)
