"""Inner products and distances of a round's updates: all that many robust rules need to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError

Matrix64 = NDArray[np.float64]

_SAME_SUM: Final = 2.0**-40  # sums of a few thousand weights differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gram:
    """Inner products of n rows and their squared distances.

    Distances are kept beside the inner products because the difference
    <a, a> + <b, b> - 2 <a, b> loses the digits of rows that are close together.

    Attributes:
        inner: (n, n), float64, symmetric: <x_i, x_j>.
        squared_distances: (n, n), float64, symmetric, not negative, zero on the diagonal:
            |x_i - x_j|^2.
    """

    inner: Matrix64
    squared_distances: Matrix64

    @classmethod
    def from_inner(cls, inner: Matrix64) -> "Gram":
        """Derive the distances from inner products, as opened from secret shares.

        Args:
            inner: (n, n), float64, finite, symmetric.

        Returns:
            Distances with an absolute error of a few 2**-52 (|x_i|^2 + |x_j|^2), plus that of
            `inner`; those that come out negative are zero.

        Raises:
            AggregationError: if `inner` is not square or not finite.
        """
        if inner.ndim != 2 or inner.shape[0] != inner.shape[1] or inner.shape[0] == 0:
            message = f"inner of shape {inner.shape} must have shape (n, n), n >= 1"
            raise AggregationError(message)
        if not np.isfinite(inner).all():
            message = "inner products must be finite"
            raise AggregationError(message)
        squares = np.diagonal(inner)
        distances = squares[:, np.newaxis] + squares - 2.0 * inner
        np.maximum(distances, 0.0, out=distances)
        np.fill_diagonal(distances, 0.0)
        return cls(inner=inner, squared_distances=distances)

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        return len(self.inner)

    @property
    def norms(self) -> NDArray[np.float64]:
        """L2 norms, (n,)."""
        norms: NDArray[np.float64] = np.sqrt(np.maximum(np.diagonal(self.inner), 0.0))
        return norms

    def take(self, indices: Sequence[int]) -> "Gram":
        """Select rows, in the order given."""
        picked = np.ix_(indices, indices)
        return Gram(inner=self.inner[picked], squared_distances=self.squared_distances[picked])

    def mixed(self, matrix: Matrix64) -> "Gram":
        """Compute the Gram of `matrix @ rows` without the rows.

        Args:
            matrix: (m, n), float64. Of two rows with equal sums, as those of averages are, the
                distance comes from distances, else from inner products.

        Cost: O(m n^2 + m^2 n) time.
        """
        inner = matrix @ self.inner @ matrix.T
        inner = 0.5 * (inner + inner.T)
        # |(a - b) X|^2 = -1/2 (a - b) D (a - b) where a - b sums to zero.
        twice = matrix @ self.squared_distances @ matrix.T
        own = np.diagonal(twice)
        distances = 0.5 * (twice + twice.T) - 0.5 * (own[:, np.newaxis] + own)
        sums = matrix.sum(axis=1)
        are_equal = np.abs(np.subtract.outer(sums, sums)) <= _SAME_SUM * np.abs(sums).max()
        squares = np.diagonal(inner)
        from_inner = squares[:, np.newaxis] + squares - 2.0 * inner
        distances = np.maximum(np.where(are_equal, distances, from_inner), 0.0)
        np.fill_diagonal(distances, 0.0)
        return Gram(inner=inner, squared_distances=distances)

    def scaled(self, factors: NDArray[np.float64]) -> "Gram":
        """Compute the Gram of rows multiplied by `factors`, (n,), not negative.

        |s x - t y|^2 = s t |x - y|^2 + (s - t) (s |x|^2 - t |y|^2): no digits are lost where the
        factors are equal.
        """
        outer = np.multiply.outer(factors, factors)
        inner = outer * self.inner
        squares = np.diagonal(self.inner)
        lengths = factors * np.sqrt(squares)
        terms = factors * squares
        corrections = np.subtract.outer(factors, factors) * np.subtract.outer(terms, terms)
        from_distances = outer * self.squared_distances + corrections
        # Where those terms are far longer than the scaled rows, as for a far row that was clipped,
        # the inner products have lost less.
        magnitudes = outer * self.squared_distances + np.abs(corrections)
        from_inner = np.add.outer(lengths**2, lengths**2) - 2.0 * inner
        is_coarse = magnitudes > np.add.outer(lengths, lengths) ** 2
        distances = np.maximum(np.where(is_coarse, from_inner, from_distances), 0.0)
        np.fill_diagonal(distances, 0.0)
        return Gram(inner=inner, squared_distances=distances)
