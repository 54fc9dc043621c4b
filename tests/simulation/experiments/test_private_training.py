"""Private training with the service's own parts, on a small population."""

from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from simulation.experiments.private_training import Features, PrivateScenario, main, train

RNG = np.random.default_rng(7)
SCENARIO = PrivateScenario(num_devices=400, sampling_probability=0.1, num_rounds=60)


@pytest.fixture(scope="module")
def features() -> Features:
    """Ten noisy classes that a linear classifier can tell apart."""
    centers = RNG.normal(size=(10, 30))
    labels = RNG.integers(10, size=2_000)
    x = (centers[labels] + 0.3 * RNG.normal(size=(2_000, 30))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Features(
        x_train=x[:1_600], y_train=labels[:1_600], x_test=x[1_600:], y_test=labels[1_600:]
    )


def test_the_same_arguments_train_the_same_model(features: Features) -> None:
    scenario = replace(SCENARIO, epsilon=100.0)
    assert train(scenario, features) == train(scenario, features)


def test_noise_costs_accuracy_and_the_budget_ends_training(features: Features) -> None:
    plain = train(SCENARIO.without_privacy(), features)
    assert plain.accuracy > 0.95
    assert (plain.epsilon_pld, plain.is_exhausted) == (None, False)
    loose = train(replace(SCENARIO, epsilon=1e3, noise_multiplier=0.5), features)
    assert loose.rounds == SCENARIO.num_rounds
    assert plain.accuracy >= loose.accuracy > 0.7
    tight = train(replace(SCENARIO, epsilon=1.0), features)
    assert tight.is_exhausted
    assert 0 < tight.rounds < SCENARIO.num_rounds


def test_the_ledger_says_what_dp_accounting_says(features: Features) -> None:
    outcome = train(replace(SCENARIO, epsilon=1.0), features)
    release = PoissonSampledDpEvent(0.1, GaussianDpEvent(SCENARIO.noise_multiplier))
    spent = []
    for rounds in (outcome.rounds, outcome.rounds + 1):
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(SelfComposedDpEvent(release, rounds))
        spent.append(accountant.get_epsilon(SCENARIO.delta))
    assert outcome.epsilon_pld == pytest.approx(spent[0], rel=1e-9)
    assert spent[0] <= SCENARIO.epsilon < spent[1]


def test_the_command_says_where_to_get_missing_data(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="mnist needs train-images"):
        main(["--data-dir", str(tmp_path)])
    assert not capsys.readouterr().out
