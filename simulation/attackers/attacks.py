"""What a malicious device does to its own update, or to its own labels.

Each attack needs only what one device knows. The names are stable: scenarios and reports use
them. In the formulas u is the honest update, s the scale and rms(u) = ||u|| / sqrt(d), so every
attack but `zero` sends an update of norm s * ||u|| at scale s (`gaussian`: in expectation). In a
shared round the device's client clips what comes out: a longer update would be found out.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.errors import ScenarioError

Vector = NDArray[np.float32]
Attack = Callable[[Vector, np.random.Generator, float], Vector]

LABEL_FLIP: Final = "label-flip"

SHARED_ATTACKS: Final = frozenset({"inconsistent-shares", "over-norm", "wrap-half", "wrap-spread"})
"""Attacks on the shares of an update, not on the update; see `shared_attacks`."""

UNSCALED: Final = frozenset({"zero", LABEL_FLIP, *SHARED_ATTACKS}) - {"over-norm"}
"""Attacks without a strength."""


def attack_named(name: str) -> Attack:
    """Look an attack up.

    Raises:
        ScenarioError: if there is none of that name; the message lists the known ones.
    """
    attack = ATTACKS.get(name)
    if attack is None:
        message = f"no attack {name!r}; there are {', '.join(sorted(ATTACKS))}"
        raise ScenarioError(message)
    return attack


def flip_labels(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Replace label c by num_classes - 1 - c: the data poisoning behind `label-flip`.

    References: Fang et al. (2020), arXiv:1911.11815, section 5.1.
    """
    return num_classes - 1 - labels


def _send_honestly(update: Vector, _rng: np.random.Generator, _scale: float) -> Vector:
    return update


def _flip_sign(update: Vector, _rng: np.random.Generator, scale: float) -> Vector:
    """Send -s u: push the model the other way."""
    return np.float32(-scale) * update


def _send_noise(update: Vector, rng: np.random.Generator, scale: float) -> Vector:
    """Send s rms(u) N(0, I): noise instead of the update."""
    noise = rng.standard_normal(update.shape)
    return (scale * _root_mean_square(update) * noise).astype(np.float32)


def _send_zero(update: Vector, _rng: np.random.Generator, _scale: float) -> Vector:
    """Send 0: hold the model back."""
    return np.zeros_like(update)


def _send_same_value(update: Vector, _rng: np.random.Generator, scale: float) -> Vector:
    """Send s rms(u) (1, ..., 1), every coordinate the same; Li et al. (2019), arXiv:1811.03761."""
    return np.full_like(update, scale * _root_mean_square(update))


def _root_mean_square(update: Vector) -> float:
    return float(np.sqrt(np.mean(np.square(update, dtype=np.float64)))) if update.size else 0.0


ATTACKS: Final[dict[str, Attack]] = {
    "none": _send_honestly,
    "sign-flip": _flip_sign,
    "gaussian": _send_noise,
    "zero": _send_zero,
    "same-value": _send_same_value,
    # The lie is in the labels the device trained on; what it learned it sends as it is.
    LABEL_FLIP: _send_honestly,
    # The lie is in the shares.
    **dict.fromkeys(sorted(SHARED_ATTACKS), _send_honestly),
}
