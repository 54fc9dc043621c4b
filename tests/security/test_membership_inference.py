"""Who was in the training, told from the published model alone: with and without noise.

Devices hold one sample each with a random label, so that there is nothing to learn but who they
are. The attack calls those members whose loss is low (Yeom et al. 2018, arXiv:1709.01604).
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.dp import DPConfig, DPGradientAggregator, RoundNoise
from privacy.calibration import noise_multiplier
from privacy.charge import Charge
from privacy.clipping import clip_by_norm
from security.secret_sharing.field import field_of
from security.secret_sharing.fixed_point import decode, encode
from simulation.data import datasets

Matrix = NDArray[np.float64]
Combine = Callable[[NDArray[np.float32], int, int], Matrix]

NUM_MEMBERS, NUM_ROUNDS, NUM_CLASSES = 40, 200, 10
CLIP_NORM, DELTA = 1.0, 1e-5
LEARNING_RATE = 2.0
SEEDS = range(5)


def population(seed: int) -> tuple[Matrix, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    images = datasets.load("digits").x_train
    chosen = rng.permutation(len(images))[: 2 * NUM_MEMBERS]
    labels = rng.integers(NUM_CLASSES, size=2 * NUM_MEMBERS)
    return images[chosen].astype(np.float64), labels


def outputs_of(weights: Matrix, x: Matrix) -> Matrix:
    outputs = x @ weights
    outputs -= outputs.max(axis=1, keepdims=True)
    log_softmax: Matrix = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    return log_softmax


def losses(weights: Matrix, x: Matrix, labels: NDArray[np.int64]) -> Matrix:
    found: Matrix = -outputs_of(weights, x)[np.arange(len(x)), labels]
    return found


def advantage(weights: Matrix, x: Matrix, labels: NDArray[np.int64]) -> float:
    """Largest true-positive minus false-positive rate over all thresholds."""
    found = losses(weights, x, labels)
    thresholds = np.sort(found)
    inside = (found[:NUM_MEMBERS, None] <= thresholds).mean(axis=0)
    outside = (found[NUM_MEMBERS:, None] <= thresholds).mean(axis=0)
    return float((inside - outside).max())


def trained(seed: int, combine: Combine) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    x, labels = population(seed)
    weights = np.zeros((x.shape[1], NUM_CLASSES))
    for number in range(1, NUM_ROUNDS + 1):
        errors = -np.exp(outputs_of(weights, x[:NUM_MEMBERS]))
        errors[np.arange(NUM_MEMBERS), labels[:NUM_MEMBERS]] += 1
        rows = np.einsum("nd,nc->ndc", x[:NUM_MEMBERS], errors).reshape(NUM_MEMBERS, -1)
        step = combine(rows.astype(np.float32), seed, number)
        weights += LEARNING_RATE * step.reshape(weights.shape)
    return weights, x, labels


def plain(rows: NDArray[np.float32], seed: int, number: int) -> Matrix:
    del seed, number
    mean: Matrix = np.mean([clip_by_norm(row, CLIP_NORM) for row in rows], axis=0)
    return mean


def shared(rows: NDArray[np.float32], seed: int, number: int) -> Matrix:
    """The sum that share holders open: exact, and of fixed-point numbers."""
    del seed, number
    field = field_of(61)
    words = [encode(clip_by_norm(row, CLIP_NORM), fraction_bits=20, field=field) for row in rows]
    total = np.sum(np.array(words, dtype=object), axis=0) % field.modulus
    return decode(total.astype(np.uint64), fraction_bits=20, field=field) / len(rows)


def private(multiplier: float) -> Combine:
    aggregator = DPGradientAggregator(
        DPConfig(clipping_norm=CLIP_NORM, noise_multiplier=multiplier, expected_updates=NUM_MEMBERS)
    )

    def combine(rows: NDArray[np.float32], seed: int, number: int) -> Matrix:
        updates = [Update(key=f"{i:03d}", vector=row, num_samples=1) for i, row in enumerate(rows)]
        noise = RoundNoise(
            noise_key=bytes([seed]) * 32, round_number=number, manifest_sha256=bytes(32)
        )
        return aggregator.aggregate(updates, noise).vector

    return combine


def mean_advantage(combine: Combine) -> float:
    return float(np.mean([advantage(*trained(seed, combine)) for seed in SEEDS]))


def test_the_control_a_model_without_noise_gives_its_members_away() -> None:
    assert mean_advantage(plain) > 0.9


def test_sharing_hides_updates_and_not_what_the_model_tells() -> None:
    assert trained(0, shared)[0] == pytest.approx(trained(0, plain)[0], abs=1e-3)
    assert advantage(*trained(0, shared)) > 0.9


def test_noise_keeps_the_advantage_below_what_epsilon_allows() -> None:
    epsilon = 1.0
    multiplier = noise_multiplier(
        Charge(noise_multiplier=1.0), releases=NUM_ROUNDS, epsilon=epsilon, delta=DELTA
    )
    # Humphries et al. (2020), arXiv:2010.12112, for one device; the best of 80 thresholds on 40
    # against 40 devices adds what chance gives, 0.15 on average.
    allowed = (math.expm1(epsilon) + 2 * DELTA) / (math.exp(epsilon) + 1)
    found = mean_advantage(private(multiplier))
    assert found < allowed
    assert found < 0.4
    assert mean_advantage(private(multiplier / 1000)) > 0.9
