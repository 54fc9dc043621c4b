"""Scenarios: refused when they contradict themselves, and the same data for the same values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulation.data import datasets
from simulation.errors import ScenarioError
from simulation.fleet.scenarios import Scenario, local_data, poisoned, shards, trainer_seed
from tests.looped import looped

UPDATE = np.array([1.0, -2.0], dtype=np.float32)


@looped(
    "fields, message",
    [
        ({"dataset": "cifar"}, "dataset='cifar'"),
        ({"attack": "flip"}, "no attack 'flip'"),
        ({"num_devices": 0}, "num_devices=0"),
        ({"seed": -1}, "seed=-1"),
        ({"min_samples": 0}, "min_samples=0"),
        ({"num_attackers": -1}, "num_attackers=-1"),
        ({"num_attackers": 21}, "num_attackers=21 exceeds num_devices=20"),
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"local_epochs": 0}, "local_epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"attack_scale": 0.0}, "attack_scale=0.0"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        Scenario(**fields)


def test_devices_share_out_the_training_samples() -> None:
    scenario = Scenario()
    data = datasets.load("digits")
    parts = [local_data(scenario, device) for device in range(scenario.num_devices)]
    assert sum(len(part.y) for part in parts) == len(data.y_train)
    assert min(len(part.y) for part in parts) >= scenario.min_samples
    own = shards(scenario)[5]
    np.testing.assert_array_equal(parts[5].x, data.x_train[own])
    np.testing.assert_array_equal(parts[5].y, data.y_train[own])


def test_an_infinite_alpha_gives_even_parts() -> None:
    sizes = {len(shard) for shard in shards(Scenario(alpha=float("inf")))}
    assert max(sizes) - min(sizes) <= 1


def test_only_label_flippers_train_on_flipped_labels() -> None:
    clean = Scenario()
    flipped = replace(clean, num_attackers=2, attack="label-flip")
    signed = replace(clean, num_attackers=2, attack="sign-flip")
    for device in (0, 1):
        honest = local_data(clean, device).y
        np.testing.assert_array_equal(local_data(flipped, device).y, 9 - honest)
        np.testing.assert_array_equal(local_data(signed, device).y, honest)
    np.testing.assert_array_equal(local_data(flipped, 2).y, local_data(clean, 2).y)


def test_only_attackers_poison_their_updates() -> None:
    scenario = Scenario(num_attackers=2, attack="sign-flip", attack_scale=3.0)
    assert poisoned(scenario, 1, 1, UPDATE).tolist() == [-3.0, 6.0]
    assert poisoned(scenario, 2, 1, UPDATE) is UPDATE
    assert poisoned(replace(scenario, attack="none"), 0, 1, UPDATE) is UPDATE


def test_noise_differs_by_device_and_round_and_repeats_by_seed() -> None:
    scenario = Scenario(num_attackers=2, attack="gaussian")
    drawn = {
        tuple(poisoned(scenario, device, number, UPDATE)) for device in (0, 1) for number in (1, 2)
    }
    assert len(drawn) == 4
    assert tuple(poisoned(scenario, 0, 1, UPDATE)) in drawn
    assert tuple(poisoned(replace(scenario, seed=1), 0, 1, UPDATE)) not in drawn


def test_devices_train_with_seeds_of_their_own() -> None:
    seeds = {trainer_seed(Scenario(seed=seed), device) for seed in (0, 1) for device in range(20)}
    assert len(seeds) == 40


def test_there_is_no_device_outside_the_population() -> None:
    for device in (-1, 20):
        with pytest.raises(ScenarioError, match=f"device={device}"):
            local_data(Scenario(), device)
