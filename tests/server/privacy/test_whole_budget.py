"""A whole budget, round by round, on the real store: as many rounds as dp-accounting allows."""

from dataclasses import dataclass
from typing import Final

import pytest

from privacy import renyi_accountant
from privacy.budget import charged_counts
from privacy.charge import Charge, Sampling
from server.config import PlanConfig
from server.config.privacy_config import PrivacyConfig
from server.privacy.budget_gate import BudgetGate
from server.privacy.private_task import private_task
from server.round.ports import CheckInVerdict, CommitResult, Lease
from server.round.records import finished_round, published_version
from server.round.state import (
    AbandonReason,
    CandidateModel,
    CandidatePassed,
    CandidateReady,
    CohortSelected,
    Event,
    GoalReached,
    Phase,
    Round,
    step,
)
from server.storage.redis_store import RedisRoundStore
from tests.privacy.library_events import pld_epsilon
from tests.server.driver.driver_bench import DIM, TASK, Bench, Recorder

EPSILON: Final = 1.0
DELTA: Final = 1e-5
CHARGE: Final = Charge(noise_multiplier=1.417, sampling=Sampling.POISSON, sampling_probability=0.01)
CANDIDATE: Final = CandidateModel(sha256="ab", size_bytes=3, excluded=0)


@dataclass(kw_only=True)
class Course:
    """Takes rounds through the store; nobody is in them, as a Poisson cohort may be."""

    store: RedisRoundStore
    gate: BudgetGate
    lease: Lease

    async def open(self, number: int) -> Round:
        round_ = Round(
            task=TASK,
            number=number,
            version=1,
            phase=Phase.SELECTING,
            base_version=number,
            reporting_goal=100,
            min_contributions=100,
            collection_timeout_ms=1,
            opened_at_ms=0,
            phase_since_ms=0,
            seed=1,
        )
        opening = await self.gate.open(round_, self.lease)
        assert opening is not None
        assert opening.result is CommitResult.COMMITTED
        return opening.round_

    async def publish(self, round_: Round) -> None:
        after = step(round_, CohortSelected(at_ms=0, cohort_size=0))
        result = await self.store.open_cohort(after, cohort=(), lease=self.lease)
        assert result is CommitResult.COMMITTED
        events: tuple[Event, ...] = (
            GoalReached(at_ms=0, accepted=0),
            CandidateReady(at_ms=0, candidate=CANDIDATE),
        )
        for event in events:
            after = step(after, event)
            assert await self.store.commit(after, lease=self.lease) is CommitResult.COMMITTED
        after = step(after, CandidatePassed(at_ms=0))
        base = await self.store.model(after.task, after.base_version)
        model = published_version(after, version=after.base_version + 1, base=base)
        record = finished_round(after, contributions=(), rejected=0, model=model)
        result = await self.store.finish(after, record=record, model=model, lease=self.lease)
        assert result is CommitResult.COMMITTED


@pytest.mark.slow
async def test_a_thousand_rounds_fit_and_the_first_too_many_is_refused(bench: Bench) -> None:
    privacy = PrivacyConfig(
        noise="central",
        epsilon=EPSILON,
        delta=DELTA,
        noise_multiplier=CHARGE.noise_multiplier,
        sampling="poisson",
        sampling_probability=CHARGE.sampling_probability,
        population=10_000,
    )
    task = bench.task.model_copy(
        update={"privacy": privacy, "plan": PlanConfig(clipping_norm=0.1), "num_rounds": 10**6}
    )
    private = private_task(task, dim=DIM, workers=bench.workers)
    lease = await bench.store.acquire_lease(TASK, owner="a", ttl_ms=10**9)
    assert lease is not None
    gate = BudgetGate(
        TASK, private=private, rounds=bench.store, ledger=bench.store, observer=Recorder()
    )
    course = Course(store=bench.store, gate=gate, lease=lease)
    first = await bench.store.model(TASK, 1)
    await bench.store.create_task(TASK, model=first, num_rounds=10**6)

    number = 1
    while (round_ := await course.open(number)).phase is Phase.SELECTING:
        await course.publish(round_)
        number += 1

    assert round_.reason is AbandonReason.BUDGET_EXHAUSTED
    most = number - 1
    assert most == renyi_accountant.max_releases(CHARGE, epsilon=EPSILON, delta=DELTA)
    assert most >= 1000
    snapshot, ledger = await bench.snapshot(), await bench.store.ledger(TASK)
    assert (snapshot.published_rounds, snapshot.current_version) == (most, most + 1)
    assert (ledger.committed, ledger.reserved) == ({CHARGE.to_text(): most}, {})
    spent = await private.epsilon(ledger.committed, "pld")
    assert spent == pld_epsilon(charged_counts(ledger), DELTA)
    assert spent <= EPSILON < pld_epsilon({CHARGE: most + 1}, DELTA)
    answer = await bench.store.check_in(TASK, device_id="d1", check_in_id="c1", ttl_ms=10, wanted=1)
    assert answer.verdict is CheckInVerdict.BUDGET_EXHAUSTED
