"""Private training at the scale that privacy needs: ten thousand devices, a thousand rounds.

No network, but the service's own parts: Poisson selection, the private aggregator with its noise,
the ledger and its accountant. Devices hold a few images each, describe them by features that cost
no privacy (`simulation.data.oriented_gradients`) and send one gradient of a linear
classifier a round (FedSGD).

`python -m simulation.experiments.private_training` trains with and without privacy, and says what
both reach.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.dp import DPConfig, DPGradientAggregator, RoundNoise
from privacy import renyi_accountant
from privacy.budget import Budget, LedgerState, allows, spent
from privacy.charge import Charge, Sampling
from privacy.keystream import derive_key
from server.round.selection import Candidate, poisson_cohort
from simulation.data import datasets
from simulation.data.oriented_gradients import hog_features

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]
Step = Callable[[Sequence[str], Matrix, int], Vector]

# Tuned on 5,000 training images held back (`--validate`), never on the test images.
LEARNING_RATE: Final = 60.0
PLAIN_LEARNING_RATE: Final = 100.0

_NUM_CLASSES: Final = 10
_VALIDATION_IMAGES: Final = 5_000
_SPLIT_STREAM: Final = 11
_NOISE_LABEL: Final = b"private training"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateScenario:
    """A population and its budget. The defaults spend epsilon 1 on 1,000 rounds.

    Attributes:
        num_devices: N, which share the training images evenly.
        sampling_probability: q of the Poisson sampling.
        num_rounds: rounds to train; fewer, where the budget is exhausted before.
        epsilon, delta: the budget.
        noise_multiplier: z; 0: no noise, no clipping and no budget.
        clipping_norm: C of one device's gradient.
        learning_rate: of the first round; falls to 0 linearly.
        seed: of the split, the selection and the noise.
    """

    num_devices: int = 10_000
    sampling_probability: float = 0.01
    num_rounds: int = 1_000
    epsilon: float = 1.0
    delta: float = 1e-5
    noise_multiplier: float = 1.417
    clipping_norm: float = 0.1
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    @property
    def is_private(self) -> bool:
        """Whether noise is added."""
        return self.noise_multiplier > 0

    @property
    def expected_updates(self) -> float:
        """m, what every sum is divided by."""
        return self.sampling_probability * self.num_devices

    def without_privacy(self) -> "PrivateScenario":
        """Return the same training without clipping and noise, at its own best step size."""
        return replace(self, noise_multiplier=0.0, learning_rate=PLAIN_LEARNING_RATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRun:
    """What training reached.

    Attributes:
        accuracy: on the images held out.
        rounds: rounds that were run.
        is_exhausted: whether the budget refused the next one.
        epsilon_pld, epsilon_rdp: spent at delta, by the two accountants; None without privacy.
    """

    accuracy: float
    rounds: int
    is_exhausted: bool
    epsilon_pld: float | None
    epsilon_rdp: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A data set as its devices see it; a last feature of 1 stands for the bias."""

    x_train: Matrix
    y_train: NDArray[np.int64]
    x_test: Matrix
    y_test: NDArray[np.int64]


def load_features(
    dataset: str, data_dir: Path | None = None, *, validate: bool = False
) -> Features:
    """Load images and describe them.

    Args:
        dataset: `mnist` or `fashion-mnist`.
        data_dir: as in `datasets.load`.
        validate: hold back 5,000 training images, and measure on these instead of the test images.

    Raises:
        DatasetError: if the data set cannot be loaded.
    """
    data = datasets.load(dataset, data_dir)
    x, y = _with_bias(hog_features(data.x_train)), data.y_train
    if validate:
        return Features(
            x_train=x[:-_VALIDATION_IMAGES],
            y_train=y[:-_VALIDATION_IMAGES],
            x_test=x[-_VALIDATION_IMAGES:],
            y_test=y[-_VALIDATION_IMAGES:],
        )
    return Features(
        x_train=x, y_train=y, x_test=_with_bias(hog_features(data.x_test)), y_test=data.y_test
    )


def train(scenario: PrivateScenario, features: Features) -> PrivateRun:
    """Train until the rounds or the budget end.

    Raises:
        PrivacyError, AggregationError: if a setting is out of range.

    Guarantees:
        Never runs a round that the ledger refuses.
        The same for the same arguments, up to the last bits of matrix products.
    """
    fleet = _PrivateFleet(scenario, features)
    combine = _private_step(scenario) if scenario.is_private else _plain_step(scenario)
    budget = Budget(epsilon=scenario.epsilon, delta=scenario.delta)
    ledger = LedgerState()
    weights = np.zeros((features.x_train.shape[1], _NUM_CLASSES), dtype=np.float32)
    rounds = 0
    for number in range(1, scenario.num_rounds + 1):
        if scenario.is_private:
            charge = _charge(scenario)
            if not allows(ledger, charge, budget, renyi_accountant):
                ledger = replace(ledger, is_exhausted=True)
                break
            ledger = ledger.reserve(number, charge)
        devices, gradients = fleet.gradients(weights, number)
        step = combine(devices, gradients, number)
        if scenario.is_private:
            ledger = ledger.settle(number, charged=True)
        rate = scenario.learning_rate * (1.0 - (number - 1) / scenario.num_rounds)
        weights = (weights + rate * step.reshape(weights.shape)).astype(np.float32)
        rounds = number
    predicted = (features.x_test @ weights).argmax(axis=1)
    return PrivateRun(
        accuracy=float(np.mean(predicted == features.y_test)),
        rounds=rounds,
        is_exhausted=ledger.is_exhausted,
        epsilon_pld=_epsilon(scenario, ledger, budget),
        epsilon_rdp=_epsilon(scenario, ledger, replace(budget, accountant="rdp")),
    )


class _PrivateFleet:
    """The devices: who is drawn for a round, and what they send."""

    def __init__(self, scenario: PrivateScenario, features: Features) -> None:
        self._scenario = scenario
        self._features = features
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([scenario.seed, _SPLIT_STREAM]))
        )
        share = len(features.y_train) // scenario.num_devices
        order = rng.permutation(len(features.y_train))[: share * scenario.num_devices]
        self._shards = order.reshape(scenario.num_devices, share)
        self._candidates = [
            Candidate(
                device_id=f"{device:06d}", offer_lapses_at_ms=0, last_round=None, participations=0
            )
            for device in range(scenario.num_devices)
        ]

    def gradients(self, weights: Matrix, number: int) -> tuple[list[str], Matrix]:
        """Draw a cohort; give its ids and negative gradients, one row a device."""
        cohort = poisson_cohort(
            self._candidates,
            probability=self._scenario.sampling_probability,
            round_number=number,
            seed=self._scenario.seed,
        )
        own = self._shards[[int(device) for device in cohort]]
        x = self._features.x_train[own.ravel()]
        outputs = x @ weights
        outputs -= outputs.max(axis=1, keepdims=True)
        errors = np.exp(outputs)
        errors /= -errors.sum(axis=1, keepdims=True)
        errors[np.arange(len(x)), self._features.y_train[own.ravel()]] += 1.0
        share = own.shape[1]
        rows = np.einsum(
            "nkd,nkc->ndc",
            x.reshape(len(cohort), share, -1),
            errors.reshape(len(cohort), share, -1),
            optimize=True,
        )
        return list(cohort), (rows / share).reshape(len(cohort), -1).astype(np.float32)


def _plain_step(scenario: PrivateScenario) -> Step:
    def step(devices: Sequence[str], gradients: Matrix, number: int) -> Vector:
        del devices, number
        total: Vector = gradients.sum(axis=0, dtype=np.float64)
        return total / scenario.expected_updates

    return step


def _epsilon(scenario: PrivateScenario, ledger: LedgerState, budget: Budget) -> float | None:
    return spent(ledger, budget, renyi_accountant) if scenario.is_private else None


def _private_step(scenario: PrivateScenario) -> Step:
    aggregator = DPGradientAggregator(
        DPConfig(
            clipping_norm=scenario.clipping_norm,
            noise_multiplier=scenario.noise_multiplier,
            expected_updates=scenario.expected_updates,
        )
    )
    noise_key = derive_key(scenario.seed.to_bytes(32, "big"), _NOISE_LABEL)

    def step(devices: Sequence[str], gradients: Matrix, number: int) -> Vector:
        updates = [
            Update(key=device, vector=row, num_samples=1)
            for device, row in zip(devices, gradients, strict=True)
        ]
        manifest = hashlib.sha256("".join(devices).encode()).digest()
        noise = RoundNoise(noise_key=noise_key, round_number=number, manifest_sha256=manifest)
        return aggregator.aggregate(updates, noise).vector

    return step


def _charge(scenario: PrivateScenario) -> Charge:
    return Charge(
        noise_multiplier=scenario.noise_multiplier,
        sampling=Sampling.POISSON,
        sampling_probability=scenario.sampling_probability,
    )


def _with_bias(features: Matrix) -> Matrix:
    return np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)


def compare(
    scenario: PrivateScenario, features: Features, seeds: Sequence[int]
) -> list[dict[str, float | int | bool | None]]:
    """Train with and without privacy for each seed; one row each."""
    rows: list[dict[str, float | int | bool | None]] = []
    for seed in seeds:
        private = train(replace(scenario, seed=seed), features)
        plain = train(replace(scenario, seed=seed).without_privacy(), features)
        lost = 100 * (plain.accuracy - private.accuracy)
        rows.append(
            {"seed": seed, "plain_accuracy": plain.accuracy, "points_lost": lost, **asdict(private)}
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    arguments = _parse(argv)
    features = load_features(arguments.dataset, arguments.data_dir, validate=arguments.validate)
    scenario = PrivateScenario(
        num_rounds=arguments.rounds,
        learning_rate=arguments.learning_rate,
        clipping_norm=arguments.clipping_norm,
    )
    rows = compare(scenario, features, range(arguments.seeds))
    if arguments.format == "json":
        report = {"dataset": arguments.dataset, "scenario": asdict(scenario), "results": rows}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return 0
    for row in rows:
        sys.stdout.write(_line(row) + "\n")
    return 0


def _line(row: Mapping[str, float | int | bool | None]) -> str:
    end = ", budget exhausted" if row["is_exhausted"] else ""
    return (
        f"seed {row['seed']}: accuracy {row['accuracy']:.4f} after {row['rounds']} rounds, "
        f"{row['plain_accuracy']:.4f} without privacy ({row['points_lost']:.2f} points); "
        f"epsilon {row['epsilon_pld']:.4f} (PLD), {row['epsilon_rdp']:.4f} (RDP){end}"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulation.experiments.private_training", description=__doc__
    )
    parser.add_argument("--dataset", choices=("mnist", "fashion-mnist"), default="mnist")
    parser.add_argument("--data-dir", type=Path, default=None, help="where it lies")
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=1, help="as many, from 0")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--clipping-norm", type=float, default=PrivateScenario().clipping_norm)
    parser.add_argument(
        "--validate", action="store_true", help="measure on training images held back, for tuning"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
