"""Training without a network, on populations small enough to follow."""

import io
from dataclasses import replace

import pytest

from aggregators import AggregatorConfig
from simulation.data import datasets
from simulation.dense_trainer import DenseTrainer
from simulation.experiments import robustness
from simulation.experiments.robustness import plan_of, simulate
from simulation.fleet.scenarios import Scenario, local_data, trainer_seed
from simulation.models import evaluate, initial_weights

SMALL = Scenario(num_devices=3, num_rounds=2, local_epochs=1, batch_size=32)
MEAN = AggregatorConfig()


def test_one_device_is_ordinary_training() -> None:
    alone = replace(SMALL, num_devices=1)
    data = datasets.load("digits")
    local = local_data(alone, 0)
    trainer = DenseTrainer(local.x, local.y, seed=trainer_seed(alone, 0))
    weights = initial_weights("digits", 0)
    expected = [evaluate(weights, data.x_test, data.y_test)]
    for number in (1, 2):
        weights = dict(trainer.train(weights, plan_of(alone, number), lambda: False).weights)
        expected.append(evaluate(weights, data.x_test, data.y_test))
    scores = simulate(alone, MEAN)
    # w + (w' - w) differs from w' by a rounding of float32.
    assert [score.loss for score in scores] == pytest.approx(
        [score.loss for score in expected], rel=1e-4
    )
    assert scores[-1].loss < scores[0].loss


def test_the_same_arguments_give_the_same_scores() -> None:
    assert simulate(SMALL, MEAN) == simulate(SMALL, MEAN)
    assert simulate(SMALL, MEAN) != simulate(replace(SMALL, seed=1), MEAN)


def test_a_population_that_sends_nothing_learns_nothing() -> None:
    scores = simulate(replace(SMALL, num_attackers=3, attack="zero"), MEAN)
    assert scores == (scores[0],) * 3


def test_sign_flipping_drives_plain_averaging_away() -> None:
    poisoned = replace(SMALL, num_attackers=1, attack="sign-flip", attack_scale=10.0)
    assert simulate(poisoned, MEAN)[-1].loss > simulate(SMALL, MEAN)[-1].loss


@pytest.mark.slow
def test_robust_averaging_withstands_what_plain_averaging_does_not() -> None:
    small = replace(Scenario(), num_devices=11, num_rounds=3, local_epochs=3)
    poisoned = replace(small, num_attackers=4, attack="sign-flip", attack_scale=10.0)
    robust = AggregatorConfig(rule="multi-krum", num_malicious_nodes=4)
    assert simulate(poisoned, robust)[-1].accuracy > 0.7
    assert simulate(poisoned, MEAN)[-1].accuracy < 0.3


def test_the_table_has_a_row_per_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "_TABLE", (("small", MEAN, SMALL),))
    out = io.StringIO()
    robustness.table(range(2), out.write)
    final = [simulate(replace(SMALL, seed=seed), MEAN)[-1].accuracy for seed in (0, 1)]
    row = out.getvalue().splitlines()[1].split()
    assert row == ["small", *(f"{score:.3f}" for score in (*final, sum(final) / 2))]
