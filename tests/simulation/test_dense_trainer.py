"""The trainer of simulated devices, against steps taken one by one."""

from collections.abc import Callable

import numpy as np
import pytest

from client import Plan, Weights
from simulation.dense_trainer import DenseTrainer
from simulation.errors import SampleModelError
from simulation.models import evaluate, initial_weights

RNG = np.random.default_rng(3)
X = RNG.random((21, 64), dtype=np.float32)
Y = RNG.integers(0, 10, 21)
WEIGHTS = initial_weights("digits", 0)
PLAN = Plan(local_epochs=2, batch_size=8, learning_rate=0.1, round=4)


def never() -> bool:
    return False


def after(calls: int) -> Callable[[], bool]:
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def assert_same(one: Weights, other: Weights) -> None:
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_it_takes_every_sample_once_an_epoch() -> None:
    trainer = DenseTrainer(X, Y, seed=5)
    batches = list(trainer._batches(PLAN))
    assert [len(batch) for batch in batches] == [8, 8, 5] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(21))


def test_a_whole_batch_is_one_step_down_the_mean_loss() -> None:
    plan = Plan(local_epochs=1, batch_size=21, learning_rate=1e-3)
    result = DenseTrainer(X, Y).train(WEIGHTS, plan, never)
    moved = sum(float(np.sum((result.weights[n] - WEIGHTS[n]) ** 2)) for n in WEIGHTS)
    # To first order the loss falls by |gradient|^2 times the rate, and the step is |gradient| times
    # the rate; float32 keeps four digits of steps this small.
    assert result.loss_before is not None
    assert result.loss_after is not None
    assert result.loss_before - result.loss_after == pytest.approx(moved / 1e-3, rel=0.01)
    assert result.num_samples == 21
    assert result.loss_before == evaluate(WEIGHTS, X, Y).loss
    assert result.loss_after == DenseTrainer(X, Y).evaluate(result.weights).loss


def test_seed_and_round_decide_and_nothing_is_kept() -> None:
    trainer = DenseTrainer(X, Y, seed=5)
    first = trainer.train(WEIGHTS, PLAN, never).weights
    assert_same(trainer.train(WEIGHTS, PLAN, never).weights, first)
    assert_same(WEIGHTS, initial_weights("digits", 0))
    others = [
        DenseTrainer(X, Y, seed=6).train(WEIGHTS, PLAN, never),
        trainer.train(WEIGHTS, Plan(local_epochs=2, batch_size=8, learning_rate=0.1), never),
    ]
    assert all(not np.array_equal(o.weights["0.weight"], first["0.weight"]) for o in others)


def test_it_stops_between_steps_when_asked() -> None:
    trainer = DenseTrainer(X, Y, seed=5)
    assert_same(trainer.train(WEIGHTS, PLAN, after(0)).weights, WEIGHTS)
    one_epoch = Plan(local_epochs=1, batch_size=8, learning_rate=0.1, round=4)
    assert_same(
        trainer.train(WEIGHTS, PLAN, after(3)).weights,
        trainer.train(WEIGHTS, one_epoch, never).weights,
    )


def test_divergence_is_an_outcome_not_an_error() -> None:
    plan = Plan(local_epochs=50, batch_size=1, learning_rate=1e30)
    result = DenseTrainer(X, Y).train(WEIGHTS, plan, never)
    assert not all(np.isfinite(tensor).all() for tensor in result.weights.values())


def test_what_cannot_train_is_refused() -> None:
    with pytest.raises(SampleModelError, match="0 features"):
        DenseTrainer(X[:0], Y[:0])
    with pytest.raises(SampleModelError, match="20 labels"):
        DenseTrainer(X, Y[:20])
    with pytest.raises(SampleModelError, match="does not take 64 inputs"):
        DenseTrainer(X, Y).train(initial_weights("mnist", 0), PLAN, never)
