"""A private task: what its rounds cost, what bounds their sums, what the budget still allows.

Importing this takes seconds: `server.privacy.accountant_loader` does it where a task is private.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from aggregators.private_rules import rule_sensitivity
from aggregators.registry import traits_of
from privacy import renyi_accountant
from privacy.budget import Accountant, Budget, LedgerState, allows, remaining_rounds, spent
from privacy.calibration import noise_multiplier
from privacy.charge import Charge, Mechanism, Sampling
from privacy.errors import PrivacyError
from privacy.noisy_distances import comparison_problem
from privacy.participation import charged_rounds
from privacy.rule_sensitivity import RuleShape
from privacy.sensitivity import SensitivityCalibrator
from server.config import TaskConfig
from server.privacy.private_settings import private_settings
from server.processes.thread_pool import Workers
from server.round.round_privacy import NOISE_OF_DEVICES, RoundPrivacy
from server.round.selection import SelectionPolicy, cohort_size

_MANY: Final = 1 << 40  # as many eligible devices as one can wish


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateTask:
    """The privacy of one task; implements the driver's `PrivateRounds`.

    Attributes:
        charge: of each round.
        noise: who adds it.
        sensitivity: of the sum that noise is added to, in units of C.
        expected_updates: m, what the noised sum is divided by, whatever comes in.
        clipping_norm: C of the first round.
        adapts: whether C moves.
        budget: what may be spent.
        workers: where accountants run.
    """

    charge: Charge
    noise: str
    sensitivity: float
    expected_updates: float
    clipping_norm: float
    adapts: bool
    budget: Budget
    workers: Workers

    @property
    def first_round(self) -> RoundPrivacy:
        """The privacy of the first round."""
        return self._round(self.clipping_norm)

    async def plan(self, ledger: LedgerState) -> RoundPrivacy:
        """Return the privacy of the next round."""
        norm = self.clipping_norm
        if self.adapts and ledger.clipping_norm is not None:
            norm = ledger.clipping_norm
        return self._round(norm)

    async def refusal(self, ledger: LedgerState, privacy: RoundPrivacy) -> str | None:
        """Say why one more round would exceed the budget; None: it would not."""
        return await self.workers.run(self._refusal, ledger, privacy)

    async def epsilon(self, counts: Mapping[str, int], accountant: Accountant) -> float:
        """Compute epsilon at the budget's delta of so many releases of each charge."""
        known = {Charge.from_text(text): count for text, count in counts.items() if count}
        if not known:
            return 0.0
        return await self.workers.run(
            renyi_accountant.epsilon_of, known, self.budget.delta, accountant
        )

    async def remaining(self, ledger: LedgerState, privacy: RoundPrivacy, *, limit: int) -> int:
        """Return the most further rounds like this one that the budget allows, up to `limit`."""
        return await self.workers.run(
            remaining_rounds,
            ledger,
            Charge.from_text(privacy.charge),
            self.budget,
            renyi_accountant,
            limit=limit,
        )

    def _round(self, clipping_norm: float) -> RoundPrivacy:
        return RoundPrivacy(
            charge=self.charge.to_text(),
            noise=self.noise,
            clipping_norm=clipping_norm,
            sensitivity=self.sensitivity,
            expected_updates=self.expected_updates,
        )

    def _refusal(self, ledger: LedgerState, privacy: RoundPrivacy) -> str | None:
        budget = self.budget
        if allows(ledger, Charge.from_text(privacy.charge), budget, renyi_accountant):
            return None
        so_far = spent(ledger, budget, renyi_accountant)
        return (
            f"one more round would exceed the budget of epsilon={budget.epsilon:g} at"
            f" delta={budget.delta:g}: {so_far:.4f} is spent, by {budget.accountant}"
        )


def private_task(config: TaskConfig, *, dim: int, workers: Workers) -> PrivateTask:
    """Calibrate a task's noise, and bound what one device can do to its sums.

    Args:
        config: of a task whose privacy is on.
        dim: numbers of an update as it is noised: of what a common map gives, else of the model.
        workers: where accountants will run; this itself takes a second or so.

    Raises:
        AggregationError: if the coordinator cannot add noise to what the rule gives.
        PrivacyError: if no noise can hide one device in what the rule gives, or the rule cannot
            work under the noise of devices, or not even one round fits the budget, or a setting
            leaves no room for the noise of the updates.
    """
    settings = config.privacy
    shape = _rule_shape(config)
    calibrator = SensitivityCalibrator(
        clipping_norm=config.plan.clipping_norm, rule=rule_sensitivity(shape)
    )
    charge = _charge(config)
    budget = _budget(config)
    task = PrivateTask(
        charge=charge,
        noise=settings.noise,
        sensitivity=calibrator.factor,
        expected_updates=_expected_terms(config, shape),
        clipping_norm=config.plan.clipping_norm,
        adapts=settings.adaptive_clipping,
        budget=budget,
        workers=workers,
    )
    if not allows(LedgerState(), charge, budget, renyi_accountant):
        message = f"noise-multiplier={charge.noise_multiplier:g} is too little for even one round"
        message += f" within epsilon={budget.epsilon:g}"
        raise PrivacyError(message)
    _check_rounds(config, task, dim)
    return task


def _check_rounds(config: TaskConfig, task: PrivateTask, dim: int) -> None:
    """Refuse what would only be found out in the first round, which is charged all the same."""
    central = private_settings(config)
    if central is not None:
        central.config(task.first_round, dim=dim)
    rule = config.aggregation.rule
    if config.privacy.noise != NOISE_OF_DEVICES or not traits_of(rule).compares_rows:
        return
    problem = comparison_problem(
        rule,
        noise_multiplier=task.charge.noise_multiplier,
        dim=dim,
        num_updates=config.reporting_goal,
    )
    if problem is not None:
        raise PrivacyError(problem)


def _charge(config: TaskConfig) -> Charge:
    settings = config.privacy
    sampling = Sampling(settings.sampling)
    is_fixed = sampling is Sampling.FIXED_SIZE
    shape = Charge(
        noise_multiplier=settings.noise_multiplier or 1.0,
        sampling=sampling,
        sampling_probability=settings.sampling_probability,
        population=settings.population if is_fixed else 0,
        cohort=_most_updates(config) if is_fixed else 0,
        mechanism=Mechanism(settings.mechanism),
        bands=settings.bands,
    )
    if settings.noise_multiplier:
        return shape
    least = noise_multiplier(
        shape,
        releases=charged_rounds(sampling, config.num_rounds, config.max_participations),
        epsilon=settings.epsilon,
        delta=settings.delta,
        accountant=settings.accountant,
    )
    return replace(shape, noise_multiplier=least)


def _budget(config: TaskConfig) -> Budget:
    return Budget(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        accountant=config.privacy.accountant,
        max_participations=config.max_participations,
    )


def _rule_shape(config: TaskConfig) -> RuleShape:
    """Return the rule as far as its sum is bounded; noise of devices hides them before any rule."""
    rule = config.aggregation
    if config.privacy.noise == "device":
        return RuleShape(rule="mean", num_updates=config.reporting_goal)
    return RuleShape(
        rule=rule.rule,
        num_updates=_most_updates(config),
        num_byzantine=rule.num_malicious_nodes,
        num_to_select=rule.num_nodes_to_select,
    )


def _most_updates(config: TaskConfig) -> int:
    """Return the most updates that one round can have."""
    match Sampling(config.privacy.sampling):
        case Sampling.POISSON:
            return config.privacy.population
        case Sampling.FIXED_SIZE:
            policy = SelectionPolicy(
                reporting_goal=config.reporting_goal, over_selection=config.over_selection
            )
            return min(cohort_size(policy, _MANY), config.privacy.population)
        case Sampling.NONE:
            return config.reporting_goal


def _expected_terms(config: TaskConfig, shape: RuleShape) -> float:
    """Return what a round's sum is divided by: the terms it has if all goes as planned."""
    settings = config.privacy
    expected = float(config.reporting_goal)
    if Sampling(settings.sampling) is Sampling.POISSON:
        expected = settings.sampling_probability * settings.population
    if traits_of(shape.rule).is_linear:
        return expected
    return float(shape.num_to_select or max(1.0, expected - shape.num_byzantine))
