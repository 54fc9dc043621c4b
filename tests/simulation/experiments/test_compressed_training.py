"""Training with compressed updates: the pieces are the real ones, the counts small."""

from dataclasses import replace

import numpy as np
import pytest

from security.secret_sharing.field import MersenneField
from simulation.dense_layers import Floats
from simulation.errors import ScenarioError
from simulation.experiments import batched_training, compressed_training
from simulation.experiments.compressed_training import Case, Task, plan_of, train
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.coordinate_maps import linear_map

TASK = Task(setting="silo", rounds=3)
DENSE = Case(method=Method.DENSE)
TOP_K = Case(method=Method.TOP_K, ratio=0.1, value_type=ValueType.FLOAT32)
PROJECTION = Case(method=Method.PROJECTION, ratio=0.1, value_type=ValueType.FLOAT32)
DIM = batched_training.dimension(TASK.sizes)
WORD_BYTES = MersenneField(61).word_bytes


def deltas(number: int = 0) -> Floats:
    rng = np.random.default_rng(number)
    return (rng.standard_normal((3, DIM)) / 100).astype(np.float32)


def plan_for(task: Task, case: Case) -> CompressionPlan:
    rng = np.random.default_rng(1)
    model, change = rng.standard_normal((2, DIM)).astype(np.float32)
    return plan_of(task, case, 1, model, change)


def mean_of(task: Task, case: Case) -> Floats:
    fleet = compressed_training._Fleet(task, case)
    return fleet.mean(plan_for(task, case), 1, [0, 1, 2], deltas())


def test_dense_plain_rounds_are_plain_averaging() -> None:
    expected = deltas().astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(mean_of(TASK, DENSE), expected, rtol=1e-6)


def test_shared_rounds_average_multiples_of_the_fixed_point() -> None:
    integers = np.rint(deltas().astype(np.float64) * 2**20)
    # Clipping is out of the way.
    task = replace(TASK, shared_clipping_norm=1e3)
    expected = integers.sum(axis=0) / 2**20 / 3
    mean = mean_of(task, replace(DENSE, shared=True))
    np.testing.assert_array_equal(mean, expected.astype(np.float32))


@pytest.mark.parametrize("shared", [False, True])
def test_maps_are_expanded_once_after_the_sum(shared: bool) -> None:
    task = replace(TASK, shared_clipping_norm=1e3)
    mapped = linear_map(plan_for(task, PROJECTION))
    compressed = np.array([mapped.compress(delta) for delta in deltas()], np.float64)
    expected = mapped.expand(compressed.mean(axis=0))
    mean = mean_of(task, replace(PROJECTION, shared=shared))
    np.testing.assert_allclose(mean, expected, atol=2.0**-21 if shared else 1e-8)


def test_top_k_averages_what_each_device_chose() -> None:
    expected = np.zeros(DIM)
    for delta in deltas():
        largest = np.argsort(-np.abs(delta), kind="stable")[: round(0.1 * DIM)]
        expected[largest] += delta[largest]
    np.testing.assert_allclose(mean_of(TASK, TOP_K), expected / 3, atol=1e-8)


@pytest.mark.parametrize("case", [TOP_K, PROJECTION], ids=lambda case: case.method.value)
def test_with_error_feedback_all_updates_arrive_in_the_end(case: Case) -> None:
    """What was sent in two rounds and what is kept then are the updates of both rounds."""
    fleet = compressed_training._Fleet(TASK, case)
    plan = plan_for(TASK, case)
    sent = np.zeros(DIM)
    for number in (1, 2):
        sent += 3 * fleet.mean(plan, number, [0, 1, 2], deltas(number)).astype(np.float64)
    kept = sum(fleet._kept[device].vector.astype(np.float64) for device in (0, 1, 2))
    expected = (deltas(1).astype(np.float64) + deltas(2)).sum(axis=0)
    np.testing.assert_allclose(sent + kept, expected, atol=1e-6)
    without = compressed_training._Fleet(TASK, replace(case, error_feedback=False))
    without.mean(plan_for(TASK, replace(case, error_feedback=False)), 1, [0, 1, 2], deltas())
    assert without._kept == {}


def test_what_is_sent_is_clipped_where_that_is_asked_for() -> None:
    for case, task in (
        (TOP_K, replace(TASK, clipping_norm=0.01)),
        (replace(PROJECTION, shared=True), replace(TASK, shared_clipping_norm=0.01)),
    ):
        length = np.linalg.norm(mean_of(task, case).astype(np.float64))
        # A mean is no longer than its longest part, up to 2^-21 for each number of the fixed point.
        assert 0 < length <= 0.01 + 2.0**-21 * np.sqrt(DIM)
        unclipped = replace(task, clipping_norm=0.0, shared_clipping_norm=1e3)
        assert np.linalg.norm(mean_of(unclipped, case)) > 0.02


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.DENSE])
def test_plans_ask_for_the_ratio_and_change_with_the_round(method: Method) -> None:
    case = Case(method=method, ratio=0.01)
    model = batched_training.initial_model(TASK.sizes, 0)
    change = np.ones_like(model)
    one, two = (plan_of(TASK, case, number, model, change) for number in (1, 2))
    assert one.num_values == round(0.01 * DIM)
    assert (one.error_feedback, one.residual_decay) == (True, TASK.residual_decay)
    assert (one == two) is (method is Method.TOP_K)


@pytest.mark.slow
def test_training_learns_and_gives_the_same_for_the_same_arguments() -> None:
    task = replace(TASK, rounds=25)
    runs = {case: train(task, case, 0) for case in (DENSE, TOP_K)}
    assert runs[DENSE].accuracy > 0.7
    assert runs[TOP_K].accuracy > 0.6
    short = replace(TASK, rounds=4)
    assert train(short, TOP_K, 0) == train(short, TOP_K, 0)
    assert train(short, TOP_K, 0) != train(short, TOP_K, 1)


def test_bytes_are_those_of_payloads_or_of_one_share() -> None:
    assert train(TASK, DENSE, 0).update_bytes == 4 * DIM + 16
    assert train(TASK, replace(DENSE, shared=True), 0).update_bytes == WORD_BYTES * DIM
    shared = train(TASK, replace(PROJECTION, shared=True), 0)
    assert shared.update_bytes == WORD_BYTES * round(0.1 * DIM)
    assert train(TASK, TOP_K, 0).update_bytes < 4 * DIM / 5


def test_chosen_coordinates_cannot_be_shared() -> None:
    with pytest.raises(ScenarioError, match="method=top-k must not be shared"):
        replace(TOP_K, shared=True)
    with pytest.raises(ScenarioError, match=r"ratio=0 must be in \(0, 1\]"):
        Case(method=Method.TOP_K, ratio=0)
