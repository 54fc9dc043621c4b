import itertools

import pytest

from aggregators.kernels.simd import odd_even_merge_sort
from tests.looped import looped


def run(pairs: list[tuple[int, int]], values: list[int]) -> list[int]:
    for low, high in pairs:
        values[low], values[high] = sorted((values[low], values[high]))
    return values


@looped("size", range(1, 14))
def test_network_sorts_zeros_and_ones_and_hence_everything(size: int) -> None:
    # The 0-1 principle: Knuth, TAOCP 3, 5.3.4, Theorem Z.
    pairs = odd_even_merge_sort(size)
    for values in itertools.product((0, 1), repeat=size):
        assert run(pairs, list(values)) == sorted(values)


@pytest.mark.parametrize("size", [16, 31, 125])
def test_network_sorts_zeros_and_ones_that_are_descending(size: int) -> None:
    pairs = odd_even_merge_sort(size)
    for ones in range(size + 1):
        assert run(pairs, [1] * ones + [0] * (size - ones)) == [0] * (size - ones) + [1] * ones
