from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.rows.cell_tree import Node, aligned_ranges, fold, merged

LEVELS = st.integers(0, 6)


def leaves(count: int, seed: int = 0) -> list[float]:
    exponents = np.random.default_rng(seed).uniform(-8, 8, count)
    return [10.0**exponent for exponent in exponents.tolist()]


def tree_sum(values: list[float]) -> float:
    """Add the largest power of two of values from the left, then the rest, to it."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return tree_sum(values[:half]) + tree_sum(values[half:])


def node(values: list[float], level: int, index: int) -> Node:
    part = values[index << level : (index + 1) << level]
    return Node(level=level, index=index, values=np.array([tree_sum(part)]))


def nodes(values: list[float], first: int, last: int, max_level: int) -> list[Node]:
    ranges = aligned_ranges(first, last, max_level=max_level)
    return [node(values, level, index) for level, index in ranges]


@given(st.integers(0, 200), st.integers(0, 200), LEVELS)
def test_ranges_cover_the_cells_once_from_left_to_right(
    first: int, count: int, max_level: int
) -> None:
    ranges = list(aligned_ranges(first, first + count, max_level=max_level))
    cells = [cell for level, i in ranges for cell in range(i << level, (i + 1) << level)]
    assert cells == list(range(first, first + count))
    assert all(level <= max_level for level, _ in ranges)


def test_ranges_are_few() -> None:
    assert len(list(aligned_ranges(0, 1024, max_level=10))) == 1
    assert len(list(aligned_ranges(1, 1023, max_level=10))) == 18


@given(st.integers(1, 100), st.lists(st.integers(0, 100), max_size=5), st.lists(LEVELS, min_size=6))
def test_sum_does_not_depend_on_who_added_which_cells(
    count: int, edges: list[int], levels: list[int]
) -> None:
    values = leaves(count, seed=count)
    cuts = sorted({0, count, *(edge for edge in edges if edge < count)})
    parts: list[Node] = []
    for part, (first, last) in enumerate(pairwise(cuts)):
        parts += nodes(values, first, last, levels[part])
    assert fold(parts).tolist() == [tree_sum(values)]


@given(st.integers(1, 100), st.integers(0, 100), LEVELS)
def test_parts_may_be_merged_before_they_are_sent(count: int, cut: int, max_level: int) -> None:
    values = leaves(count, seed=count)
    middle = min(cut, count)
    left = merged(nodes(values, 0, middle, max_level))
    right = merged(nodes(values, middle, count, max_level))
    assert len(left) + len(right) <= 2 * count.bit_length() + 2
    assert fold([*left, *right]).tolist() == [tree_sum(values)]


@pytest.mark.parametrize("count", [5, 7, 100])
def test_adding_from_left_to_right_would_give_other_bits(count: int) -> None:
    sums = [(sum(values), tree_sum(values)) for values in (leaves(count, s) for s in range(50))]
    # The control: a test of these bits would be idle if every order gave the same.
    assert any(plain != tree for plain, tree in sums)


def test_values_of_any_shape_are_added() -> None:
    parts: list[NDArray[np.float64]] = [np.full((2, 3), float(value)) for value in range(3)]
    total = fold(Node(level=0, index=i, values=part) for i, part in enumerate(parts))
    np.testing.assert_array_equal(total, np.full((2, 3), 3.0))
