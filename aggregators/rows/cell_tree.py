"""Sums over cells of columns whose bits do not depend on who added which cells.

Cells are the leaves of a binary tree over their numbers, and a sum is always left + right. A range
of cells is a few nodes of the tree; whoever holds nodes that cover all cells can finish the sum.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """The sum of cells `index * 2**level` to `(index + 1) * 2**level - 1`."""

    level: int
    index: int
    values: NDArray[np.float64]


def aligned_ranges(first: int, last: int, *, max_level: int) -> Iterator[tuple[int, int]]:
    """Split the cells from `first` up to `last` into nodes of at most 2**max_level cells.

    Yields:
        The level and the index of each node, from left to right.
    """
    while first < last:
        level = 0
        while level < max_level and first % (2 << level) == 0 and first + (2 << level) <= last:
            level += 1
        yield level, first >> level
        first += 1 << level


def fold(nodes: Iterable[Node]) -> NDArray[np.float64]:
    """Add nodes that cover all cells, from left to right. Overwrites their values."""
    stack = merged(nodes)
    total = stack.pop().values
    while stack:
        left = stack.pop()
        np.add(left.values, total, out=left.values)
        total = left.values
    return total


def merged(nodes: Iterable[Node]) -> list[Node]:
    """Add the nodes of neighbouring cells whose sum is a node of the tree. Overwrites values.

    Returns:
        The few nodes left, from left to right: what whoever holds the other cells needs.
    """
    stack: list[Node] = []
    for node in nodes:
        stack.append(node)
        while len(stack) > 1 and _are_siblings(stack[-2], stack[-1]):
            right, left = stack.pop(), stack.pop()
            np.add(left.values, right.values, out=left.values)
            stack.append(Node(level=left.level + 1, index=left.index >> 1, values=left.values))
    return stack


def _are_siblings(left: Node, right: Node) -> bool:
    return left.level == right.level and left.index % 2 == 0 and right.index == left.index + 1
