"""Histograms of oriented gradients: image features without anything learned.

Nothing here depends on data but the image itself, so that a device computes its features alone and
they cost no privacy.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE: Final = 28
CELL: Final = 4
NUM_ORIENTATIONS: Final = 8
NUM_FEATURES: Final = (SIDE // CELL) ** 2 * NUM_ORIENTATIONS

_CELLS: Final = SIDE // CELL
_BLOCK_ROWS: Final = 2048
_EPSILON: Final = 1e-3


def hog_features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the features of images of 28 x 28 pixels.

    Each pixel's gradient votes with its length for its orientation, modulo 180 degrees and shared
    between the two nearest of 8, in its cell of 4 x 4 pixels. A cell is scaled by the norm of the
    3 x 3 cells around it, and the whole to length 1.

    Args:
        images: (n, 784) or (n, 28, 28), float32 in [0, 1]. Not modified.

    Returns:
        (n, 392), float32, each row of L2 norm at most 1.

    Raises:
        ValueError: if an image has another number of pixels.

    Guarantees:
        Each row depends on its own image only.

    Cost: O(n) time, O(2,048) rows of memory beyond input and output.
    References: Dalal and Triggs (2005), Histograms of Oriented Gradients for Human Detection.
    """
    if images.size and images[0].size != SIDE * SIDE:
        message = f"images of {images[0].size} pixels must have {SIDE * SIDE}"
        raise ValueError(message)
    features = np.empty((len(images), NUM_FEATURES), dtype=np.float32)
    for start in range(0, len(images), _BLOCK_ROWS):
        block = images[start : start + _BLOCK_ROWS].reshape(-1, SIDE, SIDE)
        features[start : start + len(block)] = _block_features(block)
    return features


def _block_features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    length = np.hypot(across, down)
    place = np.mod(np.arctan2(down, across) / np.pi, 1.0) * NUM_ORIENTATIONS
    lower = np.floor(place)
    share = place - lower
    low = lower.astype(np.int64) % NUM_ORIENTATIONS
    cells = np.zeros((len(images), NUM_ORIENTATIONS, _CELLS, _CELLS), dtype=np.float32)
    for orientation in range(NUM_ORIENTATIONS):
        votes = np.where(low == orientation, length * (1.0 - share), 0.0)
        votes += np.where((low + 1) % NUM_ORIENTATIONS == orientation, length * share, 0.0)
        cells[:, orientation] = votes.reshape(-1, _CELLS, CELL, _CELLS, CELL).sum(axis=(2, 4))
    return _normalised(cells)


def _normalised(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    energy = np.pad((cells**2).sum(axis=1), ((0, 0), (1, 1), (1, 1)))
    around = sum(
        energy[:, row : row + _CELLS, column : column + _CELLS]
        for row in range(3)
        for column in range(3)
    )
    scaled = np.sqrt(cells / np.sqrt(around + _EPSILON)[:, np.newaxis])
    flat = scaled.reshape(len(cells), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (flat / np.maximum(norms, _EPSILON)).astype(np.float32)
    return unit
