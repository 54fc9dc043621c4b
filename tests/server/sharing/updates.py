"""Updates for tests of shared rounds."""

import numpy as np
from numpy.typing import NDArray


def update_of(dim: int) -> NDArray[np.float32]:
    """An update of norm 0.5."""
    values = np.random.default_rng(dim).normal(size=dim)
    return (0.5 * values / np.linalg.norm(values)).astype(np.float32)
