import subprocess
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np
import pytest

from aggregators import warm_up as module
from aggregators.base import GradientAggregator
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import RULES
from aggregators.rows.stored_rows import MAX_WIDE_ROWS
from aggregators.warm_up import warm_up
from tests.looped import looped

KNOWS_NOTHING: Final = sorted(name for name, traits in RULES.items() if not traits.needs)

EVERY_KERNEL: Final = (
    "mean",
    "krum",
    "bulyan",
    "trimmed-mean",
    "hybrid",
    "clip+median",
    "nnm+trimmed-mean",
    "bucketing+geometric-median",
)
"""Rules that make use of every kernel between them."""

COUNT_KERNELS: Final = """
import importlib, os, pkgutil, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from aggregators import kernels
from aggregators.base import GradientAggregator, Update
from aggregators.config import AggregatorConfig
from aggregators.warm_up import warm_up, warm_up_all

def compiled():
    found = set()
    for each in pkgutil.iter_modules(kernels.__path__):
        for name, item in vars(importlib.import_module(f"aggregators.kernels.{each.name}")).items():
            if isinstance(item, Dispatcher):
                found |= {(item.__module__, item.__name__, str(one)) for one in item.signatures}
    return found

def compiled_late(rules, warm):
    configs = [AggregatorConfig(rule=rule, num_malicious_nodes=1) for rule in rules.split(",")]
    for config in configs:
        warm(config)
    before = compiled()
    generator = np.random.default_rng(1)
    for num_rows, dim in ((9, 1), (9, 16), (9, 5000), (9, 70_001), (40, 300)):
        rows = generator.standard_normal((num_rows, dim)).astype(np.float32)
        rows[-1] = rows[0] + np.float32(1e-6)
        updates = [
            Update(key=f"{i:02}", vector=row, num_samples=1 + i) for i, row in enumerate(rows)
        ]
        for config in configs:
            GradientAggregator(config).aggregate(updates)
    return compiled() - before

for rules in sys.argv[2:]:
    # A process of its own for each: what others compiled does not count.
    reading, writing = os.pipe()
    if os.fork() == 0:
        warm = {"one": warm_up, "all": lambda config: warm_up_all(), "none": lambda config: None}
        os.write(writing, repr(len(compiled_late(rules, warm[sys.argv[1]]))).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        print(rules, answer.read() or "failed")
    os.wait()
"""


def compiled_late(which: str, rules: Sequence[str]) -> dict[str, int]:
    """Warm up for one, all or none; count the kernels compiled when rules then aggregate.

    Args:
        which: "one", "all" or "none".
        rules: several joined by commas share a process.
    """
    done = subprocess.run(
        [sys.executable, "-c", COUNT_KERNELS, which, *rules],
        check=True,
        capture_output=True,
        text=True,
        timeout=110,
    )
    counts = (line.split() for line in done.stdout.splitlines())
    return {rule: int(count) for rule, count in counts}


@pytest.mark.slow
def test_after_warming_up_for_a_rule_nothing_is_left_to_compile() -> None:
    assert compiled_late("one", EVERY_KERNEL) == dict.fromkeys(EVERY_KERNEL, 0)


@pytest.mark.slow
def test_after_warming_up_for_all_rules_nothing_is_left_to_compile() -> None:
    rules = ",".join(EVERY_KERNEL)
    assert compiled_late("all", [rules]) == {rules: 0}


@pytest.mark.slow
def test_without_warming_up_kernels_are_left_to_compile() -> None:
    # The counts above would be worth nothing if they never saw a kernel.
    assert min(compiled_late("none", ["mean", "median"]).values()) > 0


@pytest.mark.parametrize("rule", KNOWS_NOTHING)
@looped("num_malicious", [0, 1, 5])
def test_every_rule_that_needs_no_knowledge_can_be_warmed_up(rule: str, num_malicious: int) -> None:
    warm_up(AggregatorConfig(rule=rule, num_malicious_nodes=num_malicious))


@looped(
    "config",
    [
        AggregatorConfig(rule="bucketing+krum"),
        AggregatorConfig(rule="bucketing+krum", num_malicious_nodes=2, bucket_size=3),
        AggregatorConfig(rule="bucketing+bulyan", num_malicious_nodes=1),
        AggregatorConfig(rule="bucketing+bucketing+median", num_malicious_nodes=1),
        AggregatorConfig(rule="nnm+mean", num_malicious_nodes=4),
        AggregatorConfig(rule="arc+nnm+krum", num_malicious_nodes=4, clipping_norm=1.0),
        AggregatorConfig(rule="multi-krum", num_to_select=7),
        AggregatorConfig(rule="multi-krum", num_to_select=30, num_malicious_nodes=9),
        AggregatorConfig(rule="trimmed-mean", trim=20),
        AggregatorConfig(rule="minimum-diameter", num_malicious_nodes=8),
    ],
)
def test_settings_that_some_number_of_updates_satisfies_are_warmed_up(
    config: AggregatorConfig,
) -> None:
    warm_up(config)


def test_both_kinds_of_products_are_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    real = GradientAggregator.aggregate

    def note(self: GradientAggregator, updates: list[object]) -> object:
        counts.append(len(updates))
        return real(self, updates)  # type: ignore[arg-type]  # what it was given

    monkeypatch.setattr(GradientAggregator, "aggregate", note)
    warm_up(AggregatorConfig(rule="krum", num_malicious_nodes=1))
    assert min(counts) <= MAX_WIDE_ROWS < max(counts)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(AggregationError, match="rule='bulian'"):
        warm_up(AggregatorConfig(rule="bulian"))


@pytest.mark.parametrize("rule", sorted(set(RULES) - set(KNOWS_NOTHING)))
def test_a_rule_that_needs_knowledge_is_refused(rule: str) -> None:
    with pytest.raises(AggregationError, match="needs"):
        warm_up(AggregatorConfig(rule=rule))


def test_the_numbers_hold_nearly_equal_rows() -> None:
    values = module._values(5)
    assert values.dtype == np.float32
    assert np.array_equal(values[0], values[-1])
