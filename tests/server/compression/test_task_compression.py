"""What a task's compression makes of its settings."""

import pytest

from server.compression.task_compression import compression_name
from tests.server.compression.compressed_task import DIM, task
from updates.compression_plan import Method


@pytest.mark.parametrize(("ratio", "expected"), [(0.001, 1), (0.125, 12), (1.0, DIM)])
def test_at_least_one_number_is_sent(ratio: float, expected: int) -> None:
    assert task("projection", ratio=ratio).num_values == expected


def test_dense_updates_have_every_number() -> None:
    dense = task("dense", **{"value-type": "int8"})
    plan = dense.plan(round_number=1, base_sha256="0" * 64)
    assert plan.method is Method.DENSE
    assert plan.num_values == DIM
    assert not plan.error_feedback


def test_settings_that_change_what_an_update_means_change_their_name() -> None:
    assert compression_name(None) == ""
    told = [
        task("top-k"),
        task("rand-k"),
        task("rand-k", ratio=0.2),
        task("rand-k", **{"value-type": "int8"}),
        task("announced"),
        task("announced", **{"random-share": 0.1}),
    ]
    assert len({compression_name(one) for one in told}) == len(told)
    same = task("rand-k", **{"residual-decay": 0.5, "random-share": 0.1})
    assert compression_name(same) == compression_name(task("rand-k"))
