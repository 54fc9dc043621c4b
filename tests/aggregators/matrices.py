"""Row matrices for property tests, and oracles written from the papers."""

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Few distinct values, both zeros among them: ties everywhere.
TIED_FLOAT = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0])


def matrices(
    min_rows: int = 1, max_rows: int = 12, elements: st.SearchStrategy[float] = ANY_FLOAT
) -> st.SearchStrategy[Matrix]:
    """Draw (n, d) float32 matrices."""
    shapes = st.tuples(st.integers(min_rows, max_rows), st.integers(1, 6))
    return hnp.arrays(np.float32, shapes, elements=elements)


def same_bits(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Compare arrays bit for bit: tells -0.0 from 0.0."""
    return first.shape == second.shape and first.tobytes() == second.tobytes()


def exact_distance(first: Matrix, second: Matrix) -> float:
    """Squared distance by differences, summed without rounding."""
    differences = first.astype(np.float64) - second.astype(np.float64)
    return math.fsum((differences * differences).tolist())


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


ATTACKS = ("times_1000", "plus_1e30", "minus_1e30", "alternating_1e30", "zeros", "copies_far")


def attack(name: str, honest: Matrix, count: int) -> Matrix:
    """Make `count` attackers' rows from the honest ones."""
    dim = honest.shape[1]
    signs = np.where(np.arange(dim) % 2 == 0, 1.0, -1.0)
    rows = {
        "times_1000": honest[:1] * np.float32(1000),
        "plus_1e30": np.full((1, dim), 1e30),
        "minus_1e30": np.full((1, dim), -1e30),
        "alternating_1e30": signs[np.newaxis] * 1e30,
        "zeros": np.zeros((1, dim)),
        "copies_far": honest[:1] + 50.0,
    }[name]
    return np.repeat(rows, count, axis=0).astype(np.float32)
