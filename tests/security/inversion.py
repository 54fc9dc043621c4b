"""Gradient inversion: an image read out of one device's update.

In a dense layer z = W x + b, one sample's gradient is dW = delta x^T and db = delta. So a row of dW
divided by its entry of db is the sample itself, without any search.

References: Phong et al. (2018), Privacy-Preserving Deep Learning via Additively Homomorphic
Encryption, IEEE TIFS 13(5), section III.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client import Plan
from simulation.data import datasets
from simulation.dense_trainer import DenseTrainer
from simulation.models import LAYER_SIZES, initial_weights
from updates.vectors import flatten, layout_of

Weights = Mapping[str, NDArray[np.float32]]

DATASET = "digits"
_INPUTS, _HIDDEN = LAYER_SIZES[DATASET][:2]


def images(count: int) -> NDArray[np.float32]:
    """Give the first images of the data set, one for each device."""
    return datasets.load(DATASET).x_train[:count]


def update_of(position: int) -> NDArray[np.float32]:
    """Train on one image for one step, as a device with a single sample does."""
    data = datasets.load(DATASET)
    weights = initial_weights(DATASET, 0)
    own = slice(position, position + 1)
    trainer = DenseTrainer(data.x_train[own], data.y_train[own])
    result = trainer.train(weights, Plan(local_epochs=1, batch_size=1), lambda: False)
    layout = layout_of(weights)
    return flatten(result.weights, layout) - flatten(weights, layout)


def inverted(update: NDArray[np.floating]) -> NDArray[np.float64]:
    """Read an image out of an update of the first layer, from the row that tells most."""
    rows = update[: _HIDDEN * _INPUTS].reshape(_HIDDEN, _INPUTS).astype(np.float64)
    biases = update[_HIDDEN * _INPUTS :][:_HIDDEN].astype(np.float64)
    row = int(np.abs(biases).argmax())
    found: NDArray[np.float64] = rows[row] / biases[row]
    return found


def likeness(found: NDArray[np.floating], image: NDArray[np.floating]) -> float:
    """Correlation of what was found with the image: 1 where it is the image."""
    return float(np.corrcoef(found, image)[0, 1])
