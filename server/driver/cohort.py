"""How a round's cohort is drawn: as its charge says where it is private, else as the task likes.

The charge was fixed when the round opened, and it is what the ledger holds. So it decides, whatever
the settings say by the time the devices are there.
"""

from collections.abc import Sequence
from dataclasses import replace

from privacy.charge import Sampling
from server.round.selection import (
    Candidate,
    SelectionPolicy,
    ServerDeviceSelector,
    poisson_cohort,
    uniform_cohort,
)
from server.round.state import Round
from server.task.task_info import TaskInfo


def offers_needed(round_: Round, info: TaskInfo, *, waited_s: float) -> int:
    """Tell how many devices must offer themselves before the cohort is drawn, at least 1.

    With Poisson sampling, all devices of the population, or after the selection timeout the quorum:
    a number of offers tells who is there, not who will be drawn. With a fixed size the population
    that the charge claims, however long that takes.
    """
    is_late = waited_s >= info.terms.selection_timeout_s
    quorum = info.terms.min_contributions
    charge = round_.charge
    if charge is None or charge.sampling is Sampling.NONE:
        return quorum if is_late else info.cohort_wanted
    if charge.sampling is Sampling.POISSON:
        return max(1, quorum if is_late else info.terms.population)
    return charge.population


def draw_cohort(
    round_: Round, info: TaskInfo, candidates: Sequence[Candidate], *, needed: int
) -> tuple[str, ...] | None:
    """Draw the cohort; None: too few may take part, ask again when there are more.

    With Poisson sampling it may be empty. Whether it is must not be told by drawing again: the
    coins of a round never change, and its model is published all the same.
    """
    charge = round_.charge
    number, seed = round_.number, round_.seed
    if charge is None or charge.sampling is Sampling.NONE:
        policy = _policy(round_, info.selection)
        cohort = ServerDeviceSelector().select(
            candidates, policy=policy, round_number=number, seed=seed
        )
        return cohort if len(cohort) >= needed else None
    if len(candidates) < needed:
        return None
    if charge.sampling is Sampling.POISSON:
        chance = charge.sampling_probability
        return poisson_cohort(candidates, probability=chance, round_number=number, seed=seed)
    return uniform_cohort(candidates, size=charge.cohort, round_number=number, seed=seed)


def _policy(round_: Round, policy: SelectionPolicy) -> SelectionPolicy:
    """Return the task's policy, made as strict as the round's charge needs it."""
    charge, privacy = round_.charge, round_.privacy
    if charge is None or privacy is None:
        return policy
    caps = (policy.max_participations, privacy.max_participations)
    return replace(
        policy,
        max_participations=min((cap for cap in caps if cap is not None), default=None),
        min_rounds_between=max(policy.min_rounds_between, charge.bands - 1),
    )
