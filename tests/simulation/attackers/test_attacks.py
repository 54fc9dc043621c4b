"""The attacks, each against its formula."""

import numpy as np
import pytest

from simulation.attackers.attacks import ATTACKS, attack_named, flip_labels
from simulation.errors import ScenarioError
from tests.looped import looped

UPDATE = np.array([3.0, -4.0, 0.0, 0.0], dtype=np.float32)  # norm 5, root mean square 2.5


def sent(name: str, scale: float, seed: int = 0) -> list[float]:
    result = attack_named(name)(UPDATE, np.random.default_rng(seed), scale)
    assert result.dtype == np.float32
    assert result.shape == UPDATE.shape
    return [float(value) for value in result]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [3.0, -4.0, 0.0, 0.0]),
        ("label-flip", [3.0, -4.0, 0.0, 0.0]),
        ("sign-flip", [-6.0, 8.0, 0.0, 0.0]),
        ("zero", [0.0, 0.0, 0.0, 0.0]),
        ("same-value", [5.0, 5.0, 5.0, 5.0]),
    ],
)
def test_attacks_send_what_their_formula_says(name: str, expected: list[float]) -> None:
    assert sent(name, 2.0) == expected


def test_gaussian_noise_has_the_scale_of_the_update() -> None:
    update = np.full(40_000, 0.5, dtype=np.float32)
    noise = attack_named("gaussian")(update, np.random.default_rng(1), 3.0)
    # 40,000 draws: standard errors of the mean 1.5 / 200 and of the deviation 1.5 / 283.
    assert abs(noise.mean()) < 5 * 1.5 / 200
    assert noise.std() == pytest.approx(1.5, abs=5 * 1.5 / 283)
    assert sent("gaussian", 1.0, seed=1) == sent("gaussian", 1.0, seed=1)
    assert sent("gaussian", 1.0, seed=1) != sent("gaussian", 1.0, seed=2)


@looped("name", ATTACKS)
def test_no_attack_changes_its_input_or_minds_an_empty_one(name: str) -> None:
    update = UPDATE.copy()
    update.setflags(write=False)
    attack_named(name)(update, np.random.default_rng(0), 1.0)
    np.testing.assert_array_equal(update, UPDATE)
    empty = attack_named(name)(np.empty(0, np.float32), np.random.default_rng(0), 1.0)
    assert empty.shape == (0,)


def test_flipping_labels_mirrors_the_classes() -> None:
    assert flip_labels(np.array([0, 3, 9]), 10).tolist() == [9, 6, 0]


def test_an_unknown_attack_lists_the_known_ones() -> None:
    with pytest.raises(
        ScenarioError,
        match="gaussian, inconsistent-shares, label-flip, none, over-norm, same-value, sign-flip, "
        "wrap-half, wrap-spread, zero",
    ):
        attack_named("sign_flip")
