import math

import numpy as np
import pytest

from aggregators.rules.multi_krum import multi_krum
from privacy.errors import PrivacyError
from privacy.noisy_distances import (
    MAX_VISIBLE_MULTIPLIER,
    MEASURED_DIM,
    comparison_problem,
    max_visible_multiplier,
    norm_gate,
)


def noised(vector: np.ndarray, stddev: float, count: int, seed: int = 0) -> np.ndarray:
    return vector + np.random.default_rng(seed).normal(0, stddev, (count, len(vector)))


@pytest.mark.parametrize(("dim", "stddev"), [(1000, 0.01), (1000, 0.3), (20, 0.1)])
def test_honest_updates_pass_the_gate_and_larger_ones_do_not(dim: int, stddev: float) -> None:
    vector = np.full(dim, 1.0 / math.sqrt(dim))
    gate = norm_gate(1.0, stddev=stddev, dim=dim)
    honest = np.linalg.norm(noised(vector, stddev, 5000), axis=1)
    assert (honest <= gate).mean() >= 0.999
    # It leaves little room: twice what it lets through without noise never passes.
    assert gate < honest.mean() + 6 * float(honest.std())
    excess = math.sqrt(gate**2 - dim * stddev**2)
    assert (np.linalg.norm(noised(vector * 2 * excess, stddev, 500), axis=1) > gate).all()


def test_the_gate_is_the_formula_of_the_noise_alone_for_many_coordinates() -> None:
    dim, stddev = 1_000_000, 0.5
    simple = math.sqrt(1.0 + dim * stddev**2 * (1 + 4 * math.sqrt(2 / dim)))
    assert norm_gate(1.0, stddev=stddev, dim=dim) == pytest.approx(simple, rel=1e-6)
    assert norm_gate(1.0, stddev=0.0, dim=dim) == 1.0


def kept_attackers(total_multiplier: float, attack: str) -> float:
    """Attackers that Multi-Krum keeps of 10 among 50, on average over some rounds."""
    num, bad, dim, agreement = 50, 10, MEASURED_DIM, 0.1
    kept = 0
    for seed in range(6):
        generator = np.random.default_rng(seed)
        common = generator.normal(size=dim)
        own = generator.normal(size=(num, dim))
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        rows = math.sqrt(agreement) * common / np.linalg.norm(common)
        rows = rows + math.sqrt(1 - agreement) * own
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if attack == "sign-flip":
            rows[:bad] *= -1
        else:
            rows[:bad] = -rows[bad:].mean(axis=0) / np.linalg.norm(rows[bad:].mean(axis=0))
        rows += generator.normal(0, total_multiplier / math.sqrt(num), rows.shape)
        kept += int(multi_krum(rows.astype(np.float32), num_byzantine=bad).selected[:bad].sum())
    return kept / 6


@pytest.mark.parametrize("attack", ["minus-mean", "sign-flip"])
def test_krum_keeps_attackers_out_up_to_the_limit_and_not_above(attack: str) -> None:
    assert kept_attackers(0.0, attack) == 0
    assert kept_attackers(0.1, attack) == 0
    assert kept_attackers(0.3, attack) >= 2
    assert kept_attackers(1.0, attack) >= 6  # by chance: 8


def test_the_limit_is_that_of_the_measurement_and_shrinks_with_the_dimension() -> None:
    assert max_visible_multiplier(MEASURED_DIM) == MAX_VISIBLE_MULTIPLIER
    assert max_visible_multiplier(10) == MAX_VISIBLE_MULTIPLIER
    assert max_visible_multiplier(16 * MEASURED_DIM) == pytest.approx(MAX_VISIBLE_MULTIPLIER / 2)
    assert MAX_VISIBLE_MULTIPLIER * math.sqrt(50) == pytest.approx(0.1)


@pytest.mark.parametrize("rule", ["bulyan", "nnm+mean"])
def test_rules_that_compare_noised_updates_are_refused(rule: str) -> None:
    why = comparison_problem(rule, noise_multiplier=1.0, dim=1000, num_updates=25)
    assert why is not None
    assert "noise-multiplier=1 (5 in the sum of 25)" in why
    assert "noise = 'central' or 'holders'" in why
    assert "rule = 'mean'" in why
    assert comparison_problem(rule, noise_multiplier=0.01, dim=1000, num_updates=25) is None


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(PrivacyError, match="stddev=-1"):
        norm_gate(1.0, stddev=-1.0, dim=1)
    with pytest.raises(PrivacyError, match="dim=0"):
        max_visible_multiplier(0)
    with pytest.raises(PrivacyError, match="clip_norm=0"):
        norm_gate(0.0, stddev=1.0, dim=1)
    with pytest.raises(PrivacyError, match="num_updates=0"):
        comparison_problem("krum", noise_multiplier=1.0, dim=1, num_updates=0)
