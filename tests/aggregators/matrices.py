"""Row matrices for property tests, and oracles written from the papers."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Few distinct values, both zeros among them: ties everywhere.
TIED_FLOAT = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0])

LARGEST: Final = float(np.finfo(np.float32).max)
SMALLEST: Final = 2.0**-149
"""The least float32 above zero, a subnormal one."""

# What rounds, ties, overflows and underflows.
EDGE_VALUES: Final = (
    0.0,
    -0.0,
    SMALLEST,
    -SMALLEST,
    1e-39,
    -3e-39,
    1.0,
    -1.0,
    1.0 + 2.0**-23,
    1.0 + 2.0**-22,
    1e30,
    -1e30,
    3e38,
    -3e38,
    LARGEST,
    -LARGEST,
)


def matrices(
    min_rows: int = 1, max_rows: int = 12, elements: st.SearchStrategy[float] = ANY_FLOAT
) -> st.SearchStrategy[Matrix]:
    """Draw (n, d) float32 matrices."""
    shapes = st.tuples(st.integers(min_rows, max_rows), st.integers(1, 6))
    return hnp.arrays(np.float32, shapes, elements=elements)


def same_bits(first: Matrix | Floats, second: Matrix | Floats) -> bool:
    """Compare arrays bit for bit: tells -0.0 from 0.0, and float32 from float64."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.tobytes() == second.tobytes()


def ulps(first: Matrix, second: Matrix) -> int:
    """Count the float32 steps between the entries that are farthest apart."""
    places = []
    for values in (first, second):
        bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
        places.append(np.where(bits < 0, -(bits & 0x7FFFFFFF), bits))
    return int(np.abs(places[0] - places[1]).max())


def mixed_magnitudes(seed: int, num_rows: int, dim: int) -> Matrix:
    """Draw values of both signs, magnitudes from 1e-30 to 1e30, and a few edge values."""
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], (num_rows, dim))
    rows = signs * 10.0 ** generator.uniform(-30, 30, (num_rows, dim))
    edges = generator.choice(EDGE_VALUES, (num_rows, dim))
    picked: Matrix = np.where(generator.random((num_rows, dim)) < 0.2, edges, rows).astype(
        np.float32
    )
    return picked


def tied_rows(seed: int, num_rows: int, dim: int) -> Matrix:
    """Draw whole columns of a few values each, both zeros among them."""
    generator = np.random.default_rng(seed)
    values = np.array([-1.5, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0], dtype=np.float32)
    drawn: Matrix = generator.choice(values, (num_rows, dim))
    return drawn


def cancelling_rows(seed: int, num_rows: int, dim: int) -> Matrix:
    """Draw columns spanning 1e-8..1e8 whose large values cancel, exactly, and small ones do not."""
    generator = np.random.default_rng(seed)
    half = num_rows // 2
    large = 10.0 ** generator.uniform(-8, 8, (half, dim))
    small = 10.0 ** generator.uniform(-8, -6, (num_rows - 2 * half, dim))
    rows = np.vstack([large, -large, small]).astype(np.float32)
    rows[:half:7] = (10.0 ** generator.uniform(-8, -6, rows[:half:7].shape)).astype(np.float32)
    rows[half : 2 * half : 7] = 0.0
    return np.ascontiguousarray(generator.permuted(rows, axis=0))


def exact_distance(first: Matrix, second: Matrix) -> float:
    """Squared distance by differences, summed without rounding."""
    differences = first.astype(np.float64) - second.astype(np.float64)
    return math.fsum((differences * differences).tolist())


def exact_distances(rows: Matrix) -> Floats:
    """Squared distances of every two rows by differences, (n, n)."""
    found = np.zeros((len(rows), len(rows)))
    for i, j in itertools.combinations(range(len(rows)), 2):
        found[i, j] = found[j, i] = exact_distance(rows[i], rows[j])
    return found


def exact_products(rows: Matrix) -> Floats:
    """Inner products of every two rows, summed without rounding, (n, n)."""
    # A product of two float32 is exact in float64.
    wide = rows.astype(np.float64)
    return np.array([[math.fsum((a * b).tolist()) for b in wide] for a in wide])


def exact_combination(rows: Matrix, weights: Floats, total: float = 1.0) -> Matrix:
    """Sum weights_i x_i / total in rational numbers, (d,), rounded at the end."""
    votes = [Fraction(weight) for weight in weights.tolist()]
    sums = [
        sum((vote * Fraction(x) for vote, x in zip(votes, column, strict=True)), Fraction())
        for column in rows.T.tolist()
    ]
    return np.array([float(value / Fraction(total)) for value in sums]).astype(np.float32)


def scaled_rows(rows: Matrix, factors: Floats) -> Matrix:
    """Multiply row i by factors[i] in float64 and round to float32."""
    scaled: Matrix = (rows.astype(np.float64) * factors[:, np.newaxis]).astype(np.float32)
    return scaled


def brute_force_median(rows: Matrix) -> Matrix:
    """Median of each column, an even number's two middle values averaged in float64."""
    return np.median(rows.astype(np.float64), axis=0).astype(np.float32)


def brute_force_trimmed_mean(rows: Matrix, trim: int) -> Matrix:
    """Yin et al. (2018), Definition 2, literally; sums without rounding."""
    kept = np.sort(rows.astype(np.float64), axis=0)[trim : len(rows) - trim]
    means = [math.fsum(column) / len(kept) for column in kept.T.tolist()]
    return np.array(means).astype(np.float32)


def brute_force_mean_around_median(rows: Matrix, keep: int) -> Matrix:
    """Xie et al. (2018), Definition 6, literally; of two equally near the lesser is kept."""
    means = []
    for column in rows.astype(np.float64).T:
        middle = float(np.median(column))
        nearest = [x for _, x in sorted((abs(x - middle), x) for x in column.tolist())]
        means.append(math.fsum(nearest[:keep]) / keep)
    return np.array(means).astype(np.float32)


def brute_force_weighted_median(rows: Matrix, weights: Floats, trim: int) -> Matrix:
    """Walk up each column until half of the weight is passed; average where it is met exactly."""
    medians = []
    for column in rows.astype(np.float64).T.tolist():
        order = sorted(range(len(rows)), key=column.__getitem__)[trim : len(rows) - trim]
        votes = [Fraction(float(weights[row])) for row in order]
        half = sum(votes, Fraction()) / 2
        sums = list(itertools.accumulate(votes))
        lower = next(row for row, sum_ in zip(order, sums, strict=True) if sum_ >= half)
        beyond = (row for row, sum_ in zip(order, sums, strict=True) if sum_ > half)
        upper = next(beyond, order[-1])
        medians.append(0.5 * (column[lower] + column[upper]))
    return np.array(medians).astype(np.float32)


def brute_force_krum_scores(rows: Matrix, num_byzantine: int) -> list[float]:
    """Blanchard et al. (2017), Section 4, literally."""
    n = len(rows)
    scores = []
    for i in range(n):
        others = sorted(exact_distance(rows[i], rows[j]) for j in range(n) if j != i)
        scores.append(math.fsum(others[: n - num_byzantine - 2]))
    return scores


def honest_rows(seed: int, num_rows: int, dim: int) -> Matrix:
    """Draw rows of standard deviation 0.1 around 1."""
    generator = np.random.default_rng(seed)
    return (1.0 + 0.1 * generator.standard_normal((num_rows, dim))).astype(np.float32)


def integer_rows(seed: int, num_rows: int, dim: int) -> Matrix:
    """Draw whole numbers below a thousand: sums and products of them are exact."""
    generator = np.random.default_rng(seed)
    return generator.integers(-1000, 1000, (num_rows, dim)).astype(np.float32)


def near_identical_rows(
    seed: int, num_rows: int, dim: int, *, offset: float = 1000.0, spread: float = 1e-3
) -> Matrix:
    """Draw rows that differ by a millionth of their values."""
    generator = np.random.default_rng(seed)
    base = offset * generator.standard_normal(dim)
    return (base + spread * generator.standard_normal((num_rows, dim))).astype(np.float32)


ATTACKS = ("times_1000", "plus_1e30", "minus_1e30", "alternating_1e30", "zeros", "copies_far")
EXTREME_ATTACKS = (*ATTACKS, "largest", "smallest", "noise_1e12", "both_ends")


def attack(name: str, honest: Matrix, count: int) -> Matrix:
    """Make `count` attackers' rows from the honest ones."""
    dim = honest.shape[1]
    signs = np.where(np.arange(dim) % 2 == 0, 1.0, -1.0)
    ends = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    rows = {
        "times_1000": honest[:1] * np.float32(1000),
        "plus_1e30": np.full((1, dim), 1e30),
        "minus_1e30": np.full((1, dim), -1e30),
        "alternating_1e30": signs[np.newaxis] * 1e30,
        "zeros": np.zeros((1, dim)),
        "copies_far": honest[:1] + 50.0,
        "largest": signs[np.newaxis] * LARGEST,
        "smallest": signs[np.newaxis] * SMALLEST,
        "noise_1e12": 1e12 * np.random.default_rng(count).standard_normal((count, dim)),
        "both_ends": ends[:, np.newaxis] * np.full((1, dim), 1e30),
    }[name]
    return np.broadcast_to(rows, (count, dim)).astype(np.float32)


def cuts(dim: int, step: int, pieces: Sequence[int]) -> list[tuple[int, int]]:
    """Cut 0..dim after the given numbers of steps, and at the end."""
    edges = sorted({0, dim, *(step * piece for piece in pieces if step * piece < dim)})
    return list(itertools.pairwise(edges))
