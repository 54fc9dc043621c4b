"""When sampling may be claimed to hide who took part: an explicit choice, with reasons.

Amplification rests on whoever sees a release not knowing who is in the cohort, and on the cohort
having been drawn as the accountant believes. Neither shows in the noise, so neither can be checked
afterwards: what a task does decides, and a claim that does not hold is refused.

- Poisson: every device tosses a coin of its own in every round. One device must not displace
  another, nor may anything else about the others decide whether it counts.
- fixed-size: the cohort is a uniformly random subset of a known size out of a known population.
  Its bound is for one device in place of another, so a device may displace another: whoever is
  first of the cohort may count. The size is that of the cohort, not of those who count.
- none: always true. Any selection will do; a device pays for every round it takes part in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from privacy.charge import Sampling


class NoiseSource(Enum):
    """Who adds the noise."""

    CENTRAL = "central"
    HOLDERS = "holders"
    DEVICE = "device"


class Selection(Enum):
    """How devices come to be in a cohort."""

    OWN_COINS = "own-coins"
    """Each by a coin of its own, secret from others, the same when it is tried again."""
    UNIFORM = "uniform"
    """So many of all, every subset as likely as any other, by a secret seed."""
    WEIGHTED = "weighted"
    """By age, speed, check-in order or anything else that tells devices apart."""


class Closing(Enum):
    """What ends the collection of updates."""

    DEADLINE = "deadline"
    """Time, or that the whole cohort reported: everybody in time counts."""
    COUNT = "count"
    """That so many reported: who is faster displaces others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFacts:
    """What a task does, as far as a claim of amplification rests on it.

    Attributes:
        noise: who adds it.
        coordinator_sees_updates: whether whoever draws the cohort is trusted with updates anyway.
            False in shared rounds, whose promise covers the coordinator too.
        selection: how the cohort is drawn.
        closing: what ends it.
        seed_is_secret: whether nobody outside can compute who is drawn.
        has_participation_limits: a cap on rounds, or rounds that must lie between two.
        counts_late_updates: an update may enter a round it was not drawn for.
        is_whole_population: a cohort is drawn from all of the population or not at all.
        rule_ignores_zeros: an update of zeros and none give the same sum: rule mean.
    """

    noise: NoiseSource
    coordinator_sees_updates: bool
    selection: Selection
    closing: Closing
    seed_is_secret: bool
    has_participation_limits: bool
    counts_late_updates: bool
    is_whole_population: bool
    rule_ignores_zeros: bool


def amplification_refusals(sampling: Sampling, facts: SamplingFacts) -> tuple[str, ...]:
    """List why amplification by a kind of sampling must not be claimed; empty: it may be.

    Guarantees:
        Empty for no sampling, whatever the facts.
    """
    if sampling is Sampling.NONE:
        return ()
    reasons = [*_seen(facts), *_drawn_otherwise(facts)]
    if sampling is Sampling.POISSON:
        reasons += _not_poisson(facts)
    else:
        reasons += _not_fixed_size(facts)
    return tuple(f"sampling {sampling.value} must not be claimed: {reason}" for reason in reasons)


def _seen(facts: SamplingFacts) -> Iterator[str]:
    if facts.noise is NoiseSource.DEVICE:
        yield "where devices add the noise, whoever receives updates sees who sent them"
    if not facts.coordinator_sees_updates:
        yield "the coordinator, from whom updates are hidden, knows the cohort"
    if not facts.seed_is_secret:
        yield "whoever knows the seed knows the cohort"


def _drawn_otherwise(facts: SamplingFacts) -> Iterator[str]:
    if facts.has_participation_limits:
        yield "limits on participation make a round's chances depend on earlier rounds"
    if facts.counts_late_updates:
        yield "late updates enter rounds that their devices were not drawn for"


def _not_poisson(facts: SamplingFacts) -> Iterator[str]:
    if facts.selection is not Selection.OWN_COINS:
        yield "every device must be drawn by a coin of its own"
    if facts.closing is not Closing.DEADLINE:
        yield "closing by a count lets one device displace another: close by the deadline"
    if not facts.rule_ignores_zeros:
        yield (
            "the rule tells an update of zeros from none, so that a device's presence shows in"
            " what is selected: choose mean"
        )


def _not_fixed_size(facts: SamplingFacts) -> Iterator[str]:
    if facts.selection is not Selection.UNIFORM:
        yield "every subset of the size must be equally likely"
    if not facts.is_whole_population:
        yield "the cohort must be drawn from all of the population"
