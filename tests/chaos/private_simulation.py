"""The simulation with a privacy budget: nothing is released that is not in the ledger.

What was computed is known from the aggregations themselves, which note a round before they begin.
The models are those of the plain simulation, without noise, so that its checks hold here too.
"""

import json
from typing import Any, Final

from privacy import renyi_accountant
from privacy.budget import Budget, LedgerState, spent
from privacy.charge import Charge
from protos.fedagg.v1 import federation_pb2 as pb
from server.config import PlanConfig, TaskConfig
from server.config.privacy_config import PrivacyConfig
from server.privacy.budget_gate import PrivateRounds
from server.privacy.private_task import PrivateTask, private_task
from server.round.ports import Snapshot
from tests.chaos import operations as ops
from tests.chaos.ledger import DIM
from tests.chaos.link import TASK
from tests.chaos.operations import Operation
from tests.chaos.promise import require
from tests.chaos.simulation import Simulation

PARTICIPATIONS: Final = 3  # that the budget allows any device
CHARGE: Final = Charge(noise_multiplier=5.0)
DELTA: Final = 1e-5


def epsilon_of(rounds: int) -> float:
    return renyi_accountant.epsilon_of({CHARGE: rounds}, DELTA, "rdp")


EPSILON: Final = (epsilon_of(PARTICIPATIONS) + epsilon_of(PARTICIPATIONS + 1)) / 2
_BUDGET: Final = Budget(epsilon=EPSILON, delta=DELTA, accountant="rdp")


class PrivateSimulation(Simulation):
    """Checks the ledger after every operation, and against the audit log in the end."""

    committed = 0

    def _task(self) -> TaskConfig:
        return super()._task().model_copy(update=_private_settings(EPSILON))

    def _private(self) -> PrivateRounds | None:
        task = self._task()
        if self._lab.sabotage.boundless_budget:
            task = task.model_copy(update=_private_settings(1000.0))
        found: PrivateTask = private_task(task, dim=DIM, workers=self._lab.kernels)
        return found

    async def _observe(self) -> None:
        await super()._observe()
        self._check_ledger(await self._store.ledger(TASK), await self._snapshot())

    def _check_ledger(self, ledger: LedgerState, snapshot: Snapshot) -> None:
        round_ = snapshot.round
        running = {round_.number} if round_ is not None and not round_.is_terminal else set()
        require(
            set(ledger.reserved) == running,
            f"round {running} is open and {ledger.reserved} reserved",
        )
        charged = ledger.rounds_committed
        computed = self._releases.computed - running
        require(charged >= len(computed), f"rounds {computed} were computed and {charged} charged")
        require(
            charged >= snapshot.published_rounds,
            f"{snapshot.published_rounds} versions were published and {charged} charged",
        )
        admitted = self._releases.admitted - running
        require(charged <= len(admitted), f"{charged} charges for the rounds {admitted}")
        require(charged >= self.committed, f"{self.committed} charges became {charged}")
        self.committed = charged
        require(ledger.uncharged == 0, f"{ledger.uncharged} versions without a charge")
        busiest = self._busiest()
        require(
            ledger.max_participations >= busiest,
            f"a device was assigned {busiest} rounds, counted {ledger.max_participations}",
        )
        cost = spent(ledger, _BUDGET, renyi_accountant)
        require(cost <= EPSILON, f"epsilon {cost} of {EPSILON} is spent by {ledger}")

    def _busiest(self) -> int:
        return max((len(rounds) for rounds in self._ledger.assigned), default=0)

    async def _succeed_once_more(self) -> None:
        """After all that, a round without faults is published, or the budget does not allow it."""
        await self._advance(ops.LEASE_MS + 1)
        drive: list[Operation] = [ops.Drive(via=0), ops.Drive(via=1)]
        for operation in drive:
            await self._apply(operation)
            await self._observe()
        if (await self._snapshot()).is_exhausted:
            await self._check_exhausted()
        else:
            await super()._succeed_once_more()

    async def _check_exhausted(self) -> None:
        ledger = await self._store.ledger(TASK)
        counted = min(ledger.max_participations + 1, ledger.rounds_committed + 1)
        require(counted > PARTICIPATIONS, f"the budget was not spent by {ledger}")
        response = await self._links[0].check_in(0, "another")
        reason = response.retry_later.reason
        published = (await self._snapshot()).published_rounds
        expected = pb.RetryLater.Reason.BUDGET_EXHAUSTED
        require(reason == expected, f"after {published} versions devices are told {reason}")

    async def _check_outcome(self) -> int:
        published = await super()._check_outcome()
        lines = self._audited()
        ledger = await self._store.ledger(TASK)
        told = sum(line["details"]["privacy_charged"] for line in lines)
        require(
            told == ledger.rounds_committed,
            f"the audit log tells of {told} charges, the ledger of {ledger.rounds_committed}",
        )
        refusals = sum(line["reason"].startswith("budget_exhausted") for line in lines)
        is_exhausted = (await self._snapshot()).is_exhausted
        require(refusals == is_exhausted, f"{refusals} refusals, exhausted: {is_exhausted}")
        epsilons = [line["privacy_spent"]["epsilon"] for line in lines]
        require(epsilons == sorted(epsilons), f"spent epsilons fall: {epsilons}")
        return published

    def _audited(self) -> list[dict[str, Any]]:
        log = self._data_dir / "audit.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return sorted((json.loads(line) for line in lines), key=lambda line: line["round_id"])


def _private_settings(epsilon: float) -> dict[str, object]:
    privacy = PrivacyConfig(
        noise="central",
        noise_multiplier=CHARGE.noise_multiplier,
        epsilon=epsilon,
        delta=DELTA,
        accountant="rdp",
    )
    return {"privacy": privacy, "plan": PlanConfig(clipping_norm=1.0)}
