"""An attacker's view of the private aggregator: how much privacy is lost at least.

Canaries are updates made to be recognised. From what the aggregator publishes an attacker guesses
which of them took part; that he is right so often bounds epsilon from below, with confidence 95 %.
The bound must lie below what is claimed, and above it where the noise is too small on purpose: else
the audit could not find anything.

- One run, many canaries: Steinke, Nasr and Jagielski (2023), arXiv:2305.08846, Theorem 5.2.
- Many runs, one canary: Jagielski, Ullman and Oprea (2020), arXiv:2006.07709, with the intervals of
  Clopper and Pearson.

Claims are those of the Gaussian mechanism, Balle and Wang (2018), arXiv:1805.06530, Theorem 8.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats  # type: ignore[import-untyped]  # no types

from aggregators.base import Update
from aggregators.dp import DPConfig, DPGradientAggregator, PrivateAggregate, RoundNoise
from privacy.adaptive_clipping import AdaptiveClipping, update_noise_multiplier
from privacy.banded_noise import BandedNoise
from privacy.charge import Mechanism
from privacy.keystream import KEY_BYTES, derive_key

Floats = NDArray[np.float64]

ALPHA = 0.05  # the bounds hold with confidence 1 - ALPHA
KEY = derive_key(bytes(KEY_BYTES), b"audit")
CONFIG = DPConfig(clipping_norm=1.0, noise_multiplier=1.0, expected_updates=100.0)


def claimed_epsilon(multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism."""
    mu = 1.0 / multiplier

    def excess(epsilon: float) -> float:
        spent = stats.norm.cdf(mu / 2 - epsilon / mu)
        spent -= math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        return float(spent - delta)

    return float(optimize.brentq(excess, 0.0, 100.0))


# --- One run, many canaries.


def one_run_bound(num_canaries: int, guesses: int, correct: int, delta: float) -> float:
    """The largest epsilon that so many correct guesses refute."""

    def p_value(epsilon: float) -> float:
        chance = 1.0 / (1.0 + math.exp(-epsilon))
        tail = float(stats.binom.sf(correct - 1, guesses, chance))
        below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance)
        worst = float((np.cumsum(below) / np.arange(1, correct + 1)).max())
        return tail + 2 * num_canaries * delta * worst

    if p_value(0.0) >= ALPHA:
        return 0.0
    return float(optimize.brentq(lambda epsilon: p_value(epsilon) - ALPHA, 0.0, 30.0))


def guessed(scores: Floats, is_in: NDArray[np.bool_], guesses: int, delta: float) -> float:
    """Guess "in" for the highest scores and "out" for the lowest, none in between."""
    order = np.argsort(scores)
    half = guesses // 2
    correct = int(is_in[order[-half:]].sum() + (~is_in[order[:half]]).sum())
    return one_run_bound(len(scores), 2 * half, correct, delta)


def canaries(count: int, seed: int) -> tuple[list[Update], NDArray[np.bool_]]:
    """Updates along one axis each, of which a fair coin lets half take part."""
    is_in = np.random.default_rng(seed).random(count) < 0.5
    rows = np.eye(count, dtype=np.float32)
    updates = [
        # Longer than C: the aggregator has to clip it.
        Update(key=f"canary-{i:05}", vector=rows[i] * np.float32(3), num_samples=1_000_000)
        for i in np.flatnonzero(is_in)
    ]
    return updates, is_in


def audit_one_run(config: DPConfig, *, count: int, guesses: int, delta: float) -> float:
    updates, is_in = canaries(count, seed=1)
    noise = RoundNoise(noise_key=KEY, round_number=1, manifest_sha256=bytes(32))
    vector = DPGradientAggregator(config).aggregate(updates, noise).vector
    return guessed(vector, is_in, guesses, delta)


DELTA = 1e-5


@pytest.mark.slow
def test_one_run_shows_no_more_than_is_claimed() -> None:
    claimed = claimed_epsilon(1.0, DELTA)
    found = audit_one_run(CONFIG, count=1000, guesses=100, delta=DELTA)
    # Not nothing: an audit that finds nothing proves nothing.
    assert 1.0 < found < claimed


@pytest.mark.slow
def test_one_run_finds_noise_that_is_too_small() -> None:
    claimed = claimed_epsilon(1.0, DELTA)
    wrong = replace(CONFIG, noise_multiplier=1.0 / 6)
    assert audit_one_run(wrong, count=1000, guesses=500, delta=DELTA) > claimed


# --- Banded noise: canaries in several rounds of one run.

BANDS = 24


def audit_banded(multiplier: float, rounds: Sequence[int], *, guesses: int) -> float:
    """Score canaries by the matched filter on C times what was published."""
    count, num_steps = 800, max(rounds) + BANDS
    updates, is_in = canaries(count, seed=2)
    nobody = [Update(key="nobody", vector=np.zeros(count, np.float32), num_samples=1)]
    config = replace(CONFIG, noise_multiplier=multiplier, mechanism=Mechanism.BANDED, bands=BANDS)
    aggregator = DPGradientAggregator(config)
    kept: dict[int, NDArray[np.int64]] = {}
    published = np.zeros((num_steps, count))
    for step in range(1, num_steps):
        noise = RoundNoise(
            noise_key=KEY, round_number=step, manifest_sha256=bytes(32), history=kept.get
        )
        aggregate = aggregator.aggregate(updates if step in rounds else nobody, noise)
        kept[step] = aggregate.private.noise
        published[step] = aggregate.vector
    coefficients = np.zeros(num_steps)
    coefficients[:BANDS] = BandedNoise(BANDS).coefficients
    mixing = np.array([np.roll(coefficients, step) for step in range(num_steps)]).T
    mixing = np.tril(mixing)
    taken = np.zeros(num_steps)
    taken[list(rounds)] = 1.0
    return guessed((mixing @ taken) @ (mixing @ published), is_in, guesses, DELTA)


@pytest.mark.slow
def test_rounds_that_are_bands_apart_show_no_more_than_is_claimed() -> None:
    rounds = (1, 1 + BANDS)
    # Two rounds: one Gaussian mechanism of multiplier z / sqrt(2).
    claimed = claimed_epsilon(1.0, DELTA)
    assert 1.0 < audit_banded(math.sqrt(2), rounds, guesses=100) < claimed
    assert audit_banded(math.sqrt(2) / 6, rounds, guesses=400) > claimed


@pytest.mark.slow
def test_rounds_that_are_closer_show_more() -> None:
    rounds = range(1, 1 + BANDS)
    multiplier = 2.0 * math.sqrt(BANDS)
    assert audit_banded(multiplier, rounds, guesses=100) > claimed_epsilon(2.0, DELTA)


# --- Many runs, one canary.

RUNS = 500
WIDE_DELTA = 1e-2  # a claim holds at every delta; few runs tell most at a large one

Score = Callable[[PrivateAggregate], float]


def audit_many_runs(
    config: DPConfig,
    pair: tuple[Sequence[Update], Sequence[Update]],
    score: Score,
    threshold: float,
) -> float:
    """Compare how often a score exceeds a threshold on two neighbouring sets of updates."""
    aggregator = DPGradientAggregator(config)
    hits = []
    for name, updates in zip(("one", "other"), pair, strict=True):
        key = derive_key(KEY, b"run", name)
        noises = (
            RoundNoise(noise_key=key, round_number=run, manifest_sha256=bytes(32))
            for run in range(RUNS)
        )
        hits.append(sum(score(aggregator.aggregate(updates, n)) > threshold for n in noises))
    least = stats.beta.ppf(ALPHA / 2, hits[0], RUNS - hits[0] + 1) if hits[0] else 0.0
    most = stats.beta.ppf(1 - ALPHA / 2, hits[1] + 1, RUNS - hits[1])
    return math.log(max(least - WIDE_DELTA, 1e-9) / most)


def scalar(name: str, value: float) -> Update:
    return Update(key=name, vector=np.array([value], np.float32), num_samples=1)


def total(aggregate: PrivateAggregate) -> float:
    return float(aggregate.vector[0]) * CONFIG.expected_updates


@pytest.mark.slow
@pytest.mark.parametrize("value", [1.0, 50.0])
def test_many_runs_show_no_more_than_is_claimed(value: float) -> None:
    others = [scalar("a", 0.5), scalar("b", -0.5)]
    pair = [*others, scalar("c", value)], others
    claimed = claimed_epsilon(1.0, WIDE_DELTA)
    assert 0.5 < audit_many_runs(CONFIG, pair, total, 2.0) < claimed
    assert audit_many_runs(replace(CONFIG, noise_multiplier=0.4), pair, total, 1.2) > claimed


@pytest.mark.slow
def test_a_selection_needs_the_noise_of_its_own_sensitivity() -> None:
    # The canary decides which of two camps is selected: the sum moves by twice the norm.
    camps = [scalar(name, value) for name, value in zip("abcd", (1, 1, -1, -1), strict=True)]
    pair = [*camps, scalar("e", 1.0)], [*camps, scalar("e", 0.0)]
    config = replace(
        CONFIG, rule="multi-krum", num_malicious_nodes=1, num_to_select=1, sensitivity=2.0
    )
    claimed = claimed_epsilon(1.0, WIDE_DELTA)
    assert 0.3 < audit_many_runs(config, pair, total, 3.0) < claimed
    # As if it were a plain sum: half the noise.
    assert audit_many_runs(replace(config, sensitivity=1.0), pair, total, 1.5) > claimed


@pytest.mark.slow
def test_the_count_of_adaptive_clipping_is_part_of_the_claim() -> None:
    adaptive = AdaptiveClipping(count_stddev=0.6)
    config = replace(CONFIG, adaptive_clipping=adaptive)
    # Half of the others are within the norm, so that the share is never cut off at 0 or 1.
    others = [scalar(f"{i}", 0.0 if i % 2 else 5.0 * (-1) ** (i // 2)) for i in range(8)]
    pair = [*others, scalar("c", 1.0)], others
    variance = update_noise_multiplier(1.0, count_stddev=0.6) ** 2

    def both(aggregate: PrivateAggregate) -> float:
        # The likelihood ratio: a sum that moves by 1, a count that moves by 1/2.
        assert aggregate.within_fraction is not None
        count = (aggregate.within_fraction - 0.5) * CONFIG.expected_updates
        return total(aggregate) / variance + 0.5 * count / 0.6**2

    claimed = claimed_epsilon(1.0, WIDE_DELTA)
    assert 0.5 < audit_many_runs(config, pair, both, 2.0) < claimed


def test_the_bound_of_one_run_is_that_of_binomial_guesses() -> None:
    # Without delta: as for a randomised response that is right 90 times of 100.
    found = one_run_bound(1000, 100, 90, 0.0)
    chance = 1 / (1 + math.exp(-found))
    assert stats.binom.sf(89, 100, chance) == pytest.approx(ALPHA)
    assert one_run_bound(1000, 100, 90, 1e-5) < found
    assert one_run_bound(1000, 100, 55, 0.0) == 0.0


def test_claims_are_those_of_the_gaussian_mechanism() -> None:
    # z for epsilon 1 at delta 1e-5.
    assert claimed_epsilon(3.7306, 1e-5) == pytest.approx(1.0, abs=1e-3)
