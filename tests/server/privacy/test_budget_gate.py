"""Rounds of a private task, driven on a real store with the real accountant.

Which models come of them is not looked at here: what is opened, charged, released and refused is.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import pytest

from privacy import renyi_accountant
from privacy.budget import Accountant, Budget, LedgerState
from privacy.charge import Charge, Sampling
from server.config import PlanConfig
from server.config.privacy_config import PrivacyConfig
from server.errors import StoreUnavailable
from server.privacy.private_task import PrivateTask, private_task
from server.round.ports import CheckInVerdict, CommitResult
from server.round.state import AbandonReason, Phase
from server.storage.keys import task_prefix
from tests.server.driver.driver_bench import DIM, LEASE_MS, TASK, Bench, Process

DELTA: Final = 1e-5
Z: Final = 5.0
COST: Final = Charge(noise_multiplier=Z)
POISSON: Final = {"sampling": "poisson", "sampling_probability": 0.5, "population": 6}


def epsilon(rounds: int, charge: Charge = COST) -> float:
    return renyi_accountant.epsilon_of({charge: rounds}, DELTA)


def budget_of(rounds: float) -> float:
    """An epsilon that allows so many rounds of every device, and not one more."""
    return (epsilon(int(rounds)) + epsilon(int(rounds) + 1)) / 2


async def make_private(bench: Bench, *, epsilon: float, **settings: object) -> PrivateTask:
    """From now on, processes of the bench drive a private task with 10 rounds."""
    privacy = {"noise": "central", "noise_multiplier": Z, "epsilon": epsilon, "delta": DELTA}
    task = {
        "num_rounds": 10,
        "plan": PlanConfig(clipping_norm=0.5),
        "privacy": PrivacyConfig.model_validate(privacy | settings),
    }
    bench.task = bench.task.model_copy(update=task)
    private = bench.private = private_task(bench.task, dim=DIM, workers=bench.workers)
    first = await bench.store.model(TASK, 1)
    await bench.store.create_task(TASK, model=first, num_rounds=10)
    return private


async def ledger_of(bench: Bench) -> LedgerState:
    return await bench.store.ledger(TASK)


async def publish(bench: Bench, process: Process, number: int) -> None:
    await bench.collecting(process, round_number=number)
    await process.tick_until_idle()
    finished = await bench.store.finished_rounds(TASK, limit=99)
    assert [one.decision for one in finished if one.number == number] == ["published"]


async def test_a_round_is_reserved_before_devices_are_selected_and_charged_when_published(
    bench: Bench,
) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await process.tick_until_idle()
    round_ = await bench.round()
    assert round_.phase is Phase.SELECTING
    assert round_.privacy is not None
    assert round_.privacy.charge == COST.to_text()
    assert (await ledger_of(bench)).reserved == {1: COST.to_text()}
    await bench.collecting(process)
    assert (await ledger_of(bench)).committed == {}
    await process.tick_until_idle()
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.reserved) == ({COST.to_text(): 1}, {2: COST.to_text()})
    assert ledger.uncharged == 0


async def test_the_audit_log_and_the_metrics_tell_what_is_spent(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    for number in (1, 2):
        await publish(bench, process, number)
    for rounds, line in enumerate(bench.audited(), start=1):
        assert line["privacy_spent"] == {"epsilon": epsilon(rounds), "delta": DELTA}
        assert line["details"]["privacy_charge"] == COST.to_text()
        assert line["details"]["privacy_charged"] is True
        assert line["details"]["clipping_norm"] == 0.5
    # At the start, and then once a round.
    assert process.observer.spent == [0.0, epsilon(1), epsilon(2)]
    assert [ledger.rounds_committed for ledger in process.observer.ledgers] == [0, 0, 1, 1, 2, 2]
    assert [len(ledger.reserved) for ledger in process.observer.ledgers] == [0, 1, 0, 1, 0, 1]


async def test_nothing_that_is_told_holds_the_noise_key(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(2))
    process = bench.process("a")
    key = await bench.store.noise_key(TASK)
    await publish(bench, process, 1)
    told = (bench.folder / "audit.jsonl").read_bytes()
    told += repr([process.observer, await ledger_of(bench), await bench.snapshot()]).encode()
    told += repr(await bench.store.finished_rounds(TASK, limit=9)).encode()
    for secret in (key, key.hex().encode(), repr(key).encode()):
        assert secret not in told


async def test_the_round_that_would_exceed_the_budget_is_not_opened(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(2))
    process = bench.process("a")
    for number in (1, 2):
        await publish(bench, process, number)
    round_, ledger = await bench.round(), await ledger_of(bench)
    assert (round_.number, round_.phase) == (3, Phase.ABANDONED)
    assert round_.reason is AbandonReason.BUDGET_EXHAUSTED
    assert "would exceed the budget" in round_.detail
    assert (ledger.committed, ledger.reserved) == ({COST.to_text(): 2}, {})
    assert (await bench.snapshot()).is_exhausted
    answer = await bench.store.check_in(TASK, device_id="d9", check_in_id="c9", ttl_ms=10, wanted=2)
    assert answer.verdict is CheckInVerdict.BUDGET_EXHAUSTED
    assert process.observer.phases.count(Phase.SELECTING) == 2
    assert process.observer.ledgers[-1].is_exhausted


async def test_the_end_of_the_budget_is_written_down_once(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(1))
    process = bench.process("a")
    await publish(bench, process, 1)
    await process.tick_until_idle()
    for owner in ("b", "c"):  # each looks again, once, and finds it so
        await bench.advance(LEASE_MS + 1)
        heir = bench.process(owner)
        assert await heir.tick_until_idle() == 0
    first, last = bench.audited()
    assert (first["decision"], last["decision"]) == ("published", "abandoned")
    assert last["reason"].startswith("budget_exhausted: one more round would exceed the budget")
    assert last["privacy_spent"] == {"epsilon": epsilon(1), "delta": DELTA}
    assert last["details"]["privacy_charged"] is False
    assert [record.number for record in process.observer.finished] == [1, 2]
    assert (await bench.round()).number == 2


async def test_an_exhausted_task_is_scored_once_by_each_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_private(bench, epsilon=budget_of(1))
    await publish(bench, bench.process("a"), 1)
    await bench.advance(LEASE_MS + 1)
    calls = 0
    real = PrivateTask.refusal

    async def counted(self: PrivateTask, *args: object) -> str | None:
        nonlocal calls
        calls += 1
        return await real(self, *args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(PrivateTask, "refusal", counted)
    heir = bench.process("b")
    for _ in range(5):
        assert not await heir.driver.tick()
    assert calls == 1


async def test_a_larger_budget_lets_the_task_go_on(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(1))
    await publish(bench, bench.process("a"), 1)
    assert (await bench.snapshot()).is_exhausted
    await make_private(bench, epsilon=budget_of(2))
    await bench.advance(LEASE_MS + 1)
    process = bench.process("b")
    await process.tick_until_idle()
    round_, snapshot = await bench.round(), await bench.snapshot()
    assert (round_.number, round_.phase, snapshot.is_exhausted) == (3, Phase.SELECTING, False)
    await publish(bench, process, 3)
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.is_exhausted) == ({COST.to_text(): 2}, True)


async def test_a_smaller_budget_opens_nothing_more(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await publish(bench, process, 1)
    await make_private(bench, epsilon=budget_of(1))
    await bench.advance(LEASE_MS + 1)
    heir = bench.process("b")
    await publish(bench, heir, 2)  # in flight: it is finished
    assert (await bench.snapshot()).is_exhausted


async def test_a_participation_cap_bounds_what_rounds_without_sampling_cost(bench: Bench) -> None:
    bench.task = bench.task.model_copy(update={"max_participations": 2})
    await make_private(bench, epsilon=budget_of(2))
    process = bench.process("a")
    for number in range(1, 6):
        await process.tick_until_idle()
        devices = (f"d{number}", f"e{number}")
        await bench.offer(*devices, check_in_id=f"c{number}")
        await process.tick_until_idle()
        for device in devices:
            await bench.admit(device, 1.0, round_number=number)
        await process.tick_until_idle()
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.max_participations) == ({COST.to_text(): 5}, 1)
    assert bench.audited()[-1]["privacy_spent"]["epsilon"] == epsilon(1)
    round_ = await bench.round()
    assert round_.privacy is not None
    assert (round_.number, round_.privacy.max_participations) == (6, 2)


async def test_too_few_contributions_release_the_charge(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await process.tick_until_idle()
    await bench.offer("d1", "d2")
    await process.tick_until_idle()
    await bench.advance(600_000)
    await process.tick_until_idle()
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.reserved) == ({}, {2: COST.to_text()})
    (line,) = bench.audited()
    assert (line["details"]["privacy_charged"], line["privacy_spent"]["epsilon"]) == (False, 0.0)


async def test_noised_updates_that_came_are_charged_whatever_became_of_the_round(
    bench: Bench,
) -> None:
    """Devices add the noise: the coordinator, against whom it is, has what it was sent."""
    await make_private(bench, epsilon=budget_of(9), noise="device")
    process = bench.process("a")
    await publish(bench, process, 1)
    await bench.offer("d1", "d2")
    await process.tick_until_idle()
    await bench.advance(600_000)
    await process.tick_until_idle()
    assert [line["decision"] for line in bench.audited()] == ["published", "abandoned"]
    assert (await ledger_of(bench)).committed == {COST.to_text(): 2}
    assert [line["details"]["privacy_charged"] for line in bench.audited()] == [True, True]


async def test_a_failed_aggregation_is_charged(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await bench.collecting(process)
    await bench.blobs.delete_prefix("updates")
    await process.tick_until_idle()
    assert (await ledger_of(bench)).committed == {COST.to_text(): 1}
    (line,) = bench.audited()
    assert (line["decision"], line["details"]["privacy_charged"]) == ("abandoned", True)
    assert line["privacy_spent"]["epsilon"] == epsilon(1)


@pytest.mark.parametrize(
    ("phase", "charged"),
    [
        (Phase.SELECTING, 0),
        (Phase.COLLECTING, 0),
        (Phase.AGGREGATING, 1),
        (Phase.VALIDATING, 1),
    ],
)
async def test_a_rollback_releases_what_was_not_computed(
    bench: Bench, phase: Phase, charged: int
) -> None:
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await publish(bench, process, 1)
    if phase is not Phase.SELECTING:
        await bench.collecting(process, round_number=2)
    while (await bench.round()).phase is not phase:
        assert await process.driver.tick()
    await bench.store.rollback(TASK, 1)
    await process.tick_until_idle()
    assert (await ledger_of(bench)).rounds_committed == 1 + charged
    assert bench.audited()[-1]["details"]["privacy_charged"] == bool(charged)


@pytest.mark.parametrize("ticks", range(6))
async def test_a_dead_leaders_round_is_charged_once(bench: Bench, ticks: int) -> None:
    await make_private(bench, epsilon=budget_of(9))
    dead, heir = bench.process("a"), bench.process("b")
    await bench.collecting(dead)
    for _ in range(ticks):
        await dead.driver.tick()
    await bench.advance(LEASE_MS + 1)
    await heir.tick_until_idle()
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.reserved) == ({COST.to_text(): 1}, {2: COST.to_text()})
    assert bench.audit_lines() == 1


def lose_answers(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on, the first answer of this method is lost."""
    real: Callable[..., Awaitable[CommitResult]] = getattr(bench.store, name)
    lost = False

    async def losing(*args: object, **named: object) -> CommitResult:
        nonlocal lost
        result = await real(*args, **named)
        if not lost:
            lost = True
            raise StoreUnavailable("lost", retry_after_ms=1)
        return result

    monkeypatch.setattr(bench.store, name, losing)


@pytest.mark.parametrize("name", ["exhaust", "finish", "open_cohort", "open_round"])
async def test_a_lost_answer_changes_nothing_of_the_ledger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await make_private(bench, epsilon=budget_of(1))
    lose_answers(bench, monkeypatch, name)
    process = bench.process("a")

    async def settled() -> None:
        for _ in range(2):
            try:
                await process.tick_until_idle()
            except StoreUnavailable:
                continue

    await settled()
    await bench.offer("d1", "d2")
    await settled()
    for device in ("d1", "d2"):
        await bench.admit(device, 1.0)
    await settled()
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.reserved) == ({COST.to_text(): 1}, {})
    assert ledger.is_exhausted
    assert [line["decision"] for line in bench.audited()] == ["published", "abandoned"]


async def test_two_leaders_in_turn_reserve_each_round_once(bench: Bench) -> None:
    await make_private(bench, epsilon=budget_of(9))
    one, two = bench.process("a"), bench.process("b")
    for number in (1, 2, 3):
        await publish(bench, one, number)
        one, two = two, one
        await bench.advance(LEASE_MS + 1)
    ledger = await ledger_of(bench)
    assert ledger.rounds_committed == 3
    assert len(ledger.reserved) <= 1


async def test_a_private_round_is_not_computed_by_a_task_that_is_not_private(
    bench: Bench,
) -> None:
    await make_private(bench, epsilon=budget_of(9))
    await bench.collecting(bench.process("a"))
    await bench.advance(LEASE_MS + 1)
    bench.private = None
    process = bench.process("b")
    await process.tick_until_idle()
    (record,) = process.observer.finished
    assert "the round is private and the task is not any more" in record.reason
    assert (await bench.snapshot()).current_version == 1
    assert (await ledger_of(bench)).committed == {COST.to_text(): 1}
    (line,) = bench.audited()
    assert line["privacy_spent"] is None
    assert line["details"]["privacy_charge"] == COST.to_text()


async def test_a_round_whose_noise_others_were_to_add_is_not_computed(bench: Bench) -> None:
    """A task that changes from the coordinator's noise to the devices': this round has neither."""
    await make_private(bench, epsilon=budget_of(9))
    await bench.collecting(bench.process("a"))
    await bench.advance(LEASE_MS + 1)
    await make_private(bench, epsilon=budget_of(9), noise="device")
    process = bench.process("b")
    await process.tick_until_idle()
    (record,) = process.observer.finished
    assert "noise='central' of the round must be 'device'" in record.reason
    assert (await bench.snapshot()).current_version == 1
    assert (await ledger_of(bench)).committed == {COST.to_text(): 1}


async def test_a_round_from_before_the_task_was_private_is_not_computed(bench: Bench) -> None:
    await bench.collecting(bench.process("a"))
    await bench.advance(LEASE_MS + 1)
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("b")
    await process.tick_until_idle()
    (record,) = process.observer.finished
    assert "the task is private and the round is not" in record.reason
    ledger = await ledger_of(bench)
    assert (ledger.committed, ledger.reserved, ledger.uncharged) == ({}, {2: COST.to_text()}, 0)


async def test_no_budget_holds_where_a_version_was_published_without_a_charge(
    bench: Bench,
) -> None:
    await publish(bench, bench.process("a"), 1)
    await make_private(bench, epsilon=1000.0)
    await bench.advance(LEASE_MS + 1)
    process = bench.process("b")
    await bench.store.rollback(TASK, 1)  # ends the round that is open
    await process.tick_until_idle()
    assert (await bench.snapshot()).is_exhausted
    assert process.observer.spent == [float("inf")]
    assert bench.audited()[-1]["privacy_spent"] is None


async def test_the_next_round_has_the_clipping_norm_that_the_last_one_moved_to(
    bench: Bench,
) -> None:
    await make_private(bench, epsilon=budget_of(9))
    assert bench.private is not None
    bench.private = replace(bench.private, adapts=True)  # type: ignore[type-var]  # a PrivateTask
    process = bench.process("a")
    process.aggregation.next_clipping_norm = 0.25
    await publish(bench, process, 1)
    round_ = await bench.round()
    assert round_.privacy is not None
    assert (round_.number, round_.privacy.clipping_norm) == (2, 0.25)
    assert process.observer.ledgers[-1].clipping_norm == 0.25


async def poisson(bench: Bench) -> Process:
    bench.task = bench.task.model_copy(update={"seed": 3})  # coins that fall alike in each run
    await make_private(bench, epsilon=1000.0, **POISSON)
    process = bench.process("a")
    await process.tick_until_idle()
    return process


async def test_a_poisson_round_selects_when_the_population_is_there(bench: Bench) -> None:
    process = await poisson(bench)
    await bench.offer("d1", "d2", "d3", "d4", "d5")
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.SELECTING
    await bench.offer("d6")
    await process.driver.tick()
    round_ = await bench.round()
    assert round_.phase is Phase.COLLECTING
    assert round_.reporting_goal == round_.cohort_size


async def test_a_poisson_round_selects_after_the_timeout_from_who_is_there(bench: Bench) -> None:
    process = await poisson(bench)
    await bench.offer("d1", "d2")
    await bench.advance(59_999)
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.SELECTING
    await bench.advance(1)
    await process.driver.tick()
    assert (await bench.round()).phase is Phase.COLLECTING


async def test_a_poisson_round_goes_on_whoever_was_drawn(bench: Bench) -> None:
    """Nobody uploads: it is computed, and charged, all the same."""
    process = await poisson(bench)
    await bench.offer(*(f"d{number}" for number in range(6)))
    await process.tick_until_idle()
    assert 0 < (await bench.round()).cohort_size < 6
    await bench.advance(600_000)
    await process.tick_until_idle()
    assert Phase.AGGREGATING in process.observer.phases
    ledger = await ledger_of(bench)
    charge = Charge(noise_multiplier=Z, sampling=Sampling.POISSON, sampling_probability=0.5)
    assert ledger.committed == {charge.to_text(): 1}


async def test_an_empty_poisson_cohort_is_computed_and_charged(bench: Bench) -> None:
    await make_private(
        bench, epsilon=1000.0, sampling="poisson", sampling_probability=1e-6, population=6
    )
    process = bench.process("a")
    await process.tick_until_idle()
    await bench.offer(*(f"d{number}" for number in range(6)))
    while (await bench.round()).number == 1:
        assert await process.driver.tick()
    assert process.observer.phases[:3] == [
        Phase.SELECTING,
        Phase.COLLECTING,
        Phase.AGGREGATING,
    ]
    assert (await ledger_of(bench)).rounds_committed == 1


async def test_a_fixed_sample_waits_for_its_population(bench: Bench) -> None:
    await make_private(bench, epsilon=1000.0, sampling="fixed-size", population=5)
    process = bench.process("a")
    await process.tick_until_idle()
    await bench.offer("d1", "d2", "d3", "d4")
    await bench.advance(10**6)
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.SELECTING
    await bench.client.command("DEL", task_prefix(TASK) + "waiting")
    await bench.offer("d1", "d2", "d3", "d4", "d5")
    await process.driver.tick()
    round_ = await bench.round()
    assert (round_.phase, round_.cohort_size, round_.reporting_goal) == (Phase.COLLECTING, 2, 2)


async def test_each_round_is_scored_once(bench: Bench) -> None:
    """Loss distributions take tenths of a second: once for a round, however many ask."""
    private = await make_private(bench, epsilon=budget_of(9))
    asked: list[dict[str, int]] = []

    class Counting(PrivateTask):
        async def epsilon(self, counts: Mapping[str, int], accountant: Accountant) -> float:
            asked.append(dict(counts))
            return await super().epsilon(counts, accountant)

    fields = {name: getattr(private, name) for name in PrivateTask.__slots__}
    bench.private = Counting(**fields)
    process = bench.process("a")
    for number in (1, 2, 3):
        await publish(bench, process, number)
    assert [sum(counts.values()) for counts in asked] == [0, 1, 2, 3]


async def test_the_budget_has_the_tasks_cap(bench: Bench) -> None:
    bench.task = bench.task.model_copy(update={"max_participations": 3})
    private = await make_private(bench, epsilon=1.0)
    assert private.budget == Budget(epsilon=1.0, delta=DELTA, max_participations=3)
