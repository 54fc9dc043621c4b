"""One more vector beside the updates: a root update, or the centre of the round before."""

from collections.abc import Sequence

import numpy as np

from aggregators.errors import AggregationError
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, Vector


def gram_with_reference(
    rows: Rows, order: Sequence[int], vector: Vector, name: str
) -> tuple[Gram, Gram]:
    """Compute the Gram matrix of the rows in an order of their own and of one more vector.

    Args:
        rows: n rows.
        order: n indices of `rows`.
        vector: (d,), float32, finite.
        name: what errors call the vector.

    Returns:
        The Gram of n + 1 rows, `rows` in `order` and `vector` last; that of `rows` alone, in
        their own order.

    Raises:
        AggregationError: if `vector` is not (d,) finite float32 values.
    """
    if vector.shape != (rows.dim,) or vector.dtype != np.float32:
        message = f"{name} of shape {vector.shape} and type {vector.dtype} must be"
        message += f" ({rows.dim},), float32, like the rows"
        raise AggregationError(message)
    if not np.isfinite(vector).all():
        message = f"{name} must be finite: it holds NaN or infinity"
        raise AggregationError(message)
    gram = rows.extended(vector).gram()
    own = range(rows.num_rows)
    return gram.take([*order, rows.num_rows]), gram.take(own)
