"""The admin API's questions, answered from the stores."""

import math
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final

from privacy.budget import ACCOUNTANTS, LedgerState, charged_counts
from privacy.charge import Charge
from server.admin.answers import (
    ModelInfo,
    PrivacyStatus,
    ReplayedRound,
    RoundSummary,
    TaskStatus,
    TaskSummary,
)
from server.models.model_catalog import ModelCatalog
from server.models.replay import Replayer
from server.privacy.budget_gate import PrivateRounds
from server.round.ports import FinishedRound, ModelRegistry, ModelVersion, PrivacyLedger, RoundStore
from server.task.task_info import TaskDirectory

_NONE_PRIVATE: Final[Mapping[str, PrivateRounds]] = MappingProxyType({})


class StoreBackend:
    """`AdminBackend` over the stores; any replica answers alike.

    Args:
        rounds: those that are open and those that ended.
        ledger: what is spent of privacy budgets.
        registry: the versions there are; takes rollbacks.
        tasks: what is served.
        models: where files of versions are read.
        on_rollback: told the task and the version that an operator made current.
        replayers: build versions again, by name of the task.
        private: the tasks whose rounds are private, by name.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        *,
        rounds: RoundStore,
        ledger: PrivacyLedger,
        registry: ModelRegistry,
        tasks: TaskDirectory,
        models: ModelCatalog,
        on_rollback: Callable[[str, int], None],
        replayers: Mapping[str, Replayer],
        private: Mapping[str, PrivateRounds] = _NONE_PRIVATE,
    ) -> None:
        self._rounds = rounds
        self._ledger = ledger
        self._registry = registry
        self._tasks = tasks
        self._models = models
        self._on_rollback = on_rollback
        self._replayers = replayers
        self._private = private

    async def list_tasks(self) -> list[TaskSummary]:
        """Return every task, in the order of the configuration."""
        found = [await self.task_status(name) for name in self._tasks.names]
        return [
            TaskSummary(**status.model_dump(include=set(TaskSummary.model_fields)))
            for status in found
        ]

    async def task_status(self, task: str) -> TaskStatus:
        """Return one task and its latest round."""
        terms = self._tasks[task].terms
        snapshot = await self._rounds.snapshot(task)
        round_ = snapshot.round
        return TaskStatus(
            task=task,
            phase=round_.phase.value if round_ else None,
            published_rounds=snapshot.published_rounds,
            num_rounds=terms.num_rounds,
            model_version=snapshot.current_version,
            round_number=round_.number if round_ else None,
            cohort_size=round_.cohort_size if round_ else 0,
            accepted=snapshot.accepted,
            waiting=snapshot.waiting,
            budget_exhausted=snapshot.is_exhausted,
            model=_model_info(await self._registry.model(task, snapshot.current_version)),
        )

    async def privacy(self, task: str) -> PrivacyStatus:
        """Return budget, ledger and participations of one task, private or not."""
        info = self._tasks[task]
        ledger = await self._ledger.ledger(task)
        private = self._private.get(task)
        plan = None if private is None else await private.plan(ledger)
        scores = await self._scores(private, ledger)
        left = max(0, info.terms.num_rounds - (await self._rounds.snapshot(task)).published_rounds)
        if private is not None and plan is not None:
            left = await private.remaining(ledger, plan, limit=left)
        settings = info.privacy
        return PrivacyStatus(
            task=task,
            noise=settings.noise,
            mechanism=settings.mechanism,
            sampling=settings.sampling,
            noise_multiplier=Charge.from_text(plan.charge).noise_multiplier if plan else None,
            clipping_norm=plan.clipping_norm if plan else None,
            charge=plan.charge if plan else None,
            accountant=settings.accountant,
            delta=settings.delta,
            epsilon_budget=settings.epsilon,
            epsilon_spent=scores.get(settings.accountant),
            epsilon_by_accountant=scores,
            rounds_committed=ledger.rounds_committed,
            rounds_reserved=len(ledger.reserved),
            rounds_remaining=left,
            uncharged_versions=ledger.uncharged,
            budget_exhausted=ledger.is_exhausted,
            max_participations=info.selection.max_participations,
            participations=await self._ledger.participations(task),
        )

    async def _scores(
        self, private: PrivateRounds | None, ledger: LedgerState
    ) -> dict[str, float | None]:
        """Compute epsilon by each accountant; None: no bound, nothing where nobody asks."""
        if private is None:
            return {}
        cap = private.budget.max_participations
        counts = charged_counts(ledger, max_participations=cap)
        told = {charge.to_text(): count for charge, count in counts.items()}
        found: dict[str, float | None] = {}
        for accountant in ACCOUNTANTS:
            epsilon = await private.epsilon(told, accountant)
            is_bound = math.isfinite(epsilon) and not ledger.uncharged
            found[accountant] = epsilon if is_bound else None
        return found

    async def finished_rounds(self, task: str, *, limit: int) -> list[RoundSummary]:
        """Return the latest finished rounds, newest first."""
        self._tasks[task]
        found = await self._rounds.finished_rounds(task, limit=limit)
        return [_round_summary(record) for record in reversed(found)]

    async def list_models(self, task: str) -> list[ModelInfo]:
        """Return every published version, newest first."""
        self._tasks[task]
        return [_model_info(model) for model in reversed(await self._registry.models(task))]

    async def model(self, task: str, version: int) -> ModelInfo:
        """Return one published version."""
        self._tasks[task]
        return _model_info(await self._registry.model(task, version))

    async def model_file(self, task: str, version: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the file of one published version; the first part is read, so that it is there."""
        self._tasks[task]
        model = await self._models.version(task, version)
        parts = self._models.file(task, model)
        first = await anext(parts)

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for part in parts:
                yield part

        return model.size_bytes, whole()

    async def replay(self, task: str, round_number: int) -> ReplayedRound:
        """Build a round's version again, and compare."""
        replayer = self._replayers[self._tasks[task].name]
        found = await replayer.replay(task, round_number)
        return ReplayedRound(
            round_number=round_number,
            model_version=found.version.version,
            base_version=found.version.parent or 1,
            contributions=found.contributions,
            sha256=found.version.sha256,
            rebuilt_sha256=found.sha256,
            state_sha256=found.version.state_sha256,
            rebuilt_state_sha256=found.state_sha256,
            is_same=found.is_same,
            problem=found.problem,
        )

    async def rollback(self, task: str, version: int) -> ModelInfo:
        """Make an earlier version current."""
        self._tasks[task]
        model = await self._registry.rollback(task, version)
        self._on_rollback(task, version)
        return _model_info(model)


def _model_info(model: ModelVersion) -> ModelInfo:
    return ModelInfo(
        version=model.version,
        parent=model.parent,
        round_number=model.round_number,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        dim=model.dim,
        created_at_ms=model.created_at_ms,
        metrics=model.metrics,
        state_sha256=model.state_sha256,
    )


def _round_summary(record: FinishedRound) -> RoundSummary:
    return RoundSummary(
        number=record.number,
        decision=record.decision,
        reason=record.reason,
        base_version=record.base_version,
        model_version=record.model_version,
        cohort_size=record.cohort_size,
        accepted=record.accepted,
        rejected=record.rejected,
        excluded=record.excluded,
        started_at_ms=record.started_at_ms,
        finished_at_ms=record.finished_at_ms,
        bytes_up=record.bytes_up,
        traceparent=record.traceparent,
        metrics=record.metrics,
    )
