"""Bucketing: a rule is given the means of small random groups of updates.

Means of s updates from devices with different data differ less than the updates do, at the price
that one arbitrary update spoils a whole bucket: the rule that follows still has to tolerate f, now
among n / s.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buckets:
    """The buckets of n rows.

    Attributes:
        rows: m rows, the means of the buckets; averaged anew whenever they are read.
        sizes: (m,), float64: number of rows in each. All but the last are full. As weights of a
            mean over the buckets they make it the mean of the n rows.
        matrix: (m, n), float64: `rows` is `matrix` times the n rows. Weights w of the buckets are
            weights `w @ matrix` of the rows.
    """

    rows: Rows
    sizes: Floats
    matrix: Floats


def bucketing(rows: RowsLike, *, bucket_size: int, seed: int, num_byzantine: int = 0) -> Buckets:
    """Average random groups of rows.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        bucket_size: s, rows averaged in each bucket, 1..n; the last one holds what is left over.
        seed: decides the groups; from 0, and unknown to devices until their updates are in.
        num_byzantine: f, rows that may be arbitrary; 2 f s < n, or the buckets they spoil would
            not be a minority.

    Returns:
        ceil(n / s) buckets.

    Raises:
        TooFewUpdatesError: if 2 f s >= n.
        AggregationError: if another argument is out of range. Entries that are not finite are
            refused when the buckets are read.

    Guarantees:
        Invariant to row order, bit for bit: the same rows share a bucket, and buckets come in the
        same order.
        The mean of the buckets, weighted by their sizes, is the mean of the rows.
        With at most f arbitrary rows, fewer than half of the buckets hold one.

    Cost: O(m n d) time for each read, O(m n + block) memory.
    References: Karimireddy, He and Jaggi (2022), arXiv:2006.09365, Algorithm 1; there the last
        bucket counts as much as a full one.
    """
    matrix = as_rows(rows)
    num_rows = matrix.num_rows
    if num_byzantine < 0:
        message = f"num_byzantine={num_byzantine} of bucketing must be at least 0"
        raise AggregationError(message)
    if 2 * num_byzantine * bucket_size >= num_rows:
        message = f"bucket_size={bucket_size} of bucketing must satisfy"
        message += f" 2 * num_byzantine * bucket_size < n, got num_byzantine={num_byzantine}"
        message += f" and n={num_rows}"
        raise TooFewUpdatesError(message)
    mixing, sizes = bucketing_matrix(num_rows, bucket_size=bucket_size, seed=seed)
    order = canonical_order(matrix)
    in_caller_order = np.empty_like(mixing)
    in_caller_order[:, order] = mixing
    return Buckets(rows=matrix.take(order).mixed(mixing), sizes=sizes, matrix=in_caller_order)


def bucketing_matrix(num_rows: int, *, bucket_size: int, seed: int) -> tuple[Floats, Floats]:
    """Draw a random partition.

    Args:
        num_rows: n, from 1.
        bucket_size: s, 1..n.
        seed: from 0.

    Returns:
        (m, n), float64: 1 / size of the bucket where a row belongs to it, else 0; and the sizes,
        (m,), float64.

    Raises:
        AggregationError: if an argument is out of range.
    """
    if bucket_size < 1:
        message = f"bucket_size={bucket_size} of bucketing must be at least 1"
        raise AggregationError(message)
    if bucket_size > num_rows:
        message = f"bucket_size={bucket_size} of bucketing must be in 1..n={num_rows}"
        raise TooFewUpdatesError(message)
    if seed < 0:
        message = f"seed={seed} of bucketing must be at least 0"
        raise AggregationError(message)
    drawn: NDArray[np.int64] = np.random.Generator(np.random.Philox(seed)).permutation(num_rows)
    bucket_of = np.empty(num_rows, dtype=np.int64)
    bucket_of[drawn] = np.arange(num_rows) // bucket_size
    num_buckets = math.ceil(num_rows / bucket_size)
    sizes = np.bincount(bucket_of, minlength=num_buckets).astype(np.float64)
    matrix = np.zeros((num_buckets, num_rows))
    matrix[bucket_of, np.arange(num_rows)] = 1.0 / sizes[bucket_of]
    return matrix, sizes
