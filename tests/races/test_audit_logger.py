"""Threads and loggers that share one file leave one chain with every round in it once."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.audit_entry import AuditEntry
from monitoring.audit_logger import AuditLogger, verify
from tests.races.hunting import Unlocked, attempts, examples, together


class UnlockedLogger(AuditLogger):
    """A planted race: threads of one process do not wait for each other."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = Unlocked()  # type: ignore[assignment]

    @contextmanager
    def _open_locked(self) -> Iterator[int]:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            yield file
        finally:
            os.close(file)


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        task="t",
        round_id=number,
        decision="PUBLISHED",
        reason="",
        model_version=number + 1,
        accepted=3,
        rejected=0,
        device_ids=("a", "b", "c"),
        privacy_spent=None,
        at_ms=number,
    )


def hunted(
    folder: Path, rounds: Sequence[Sequence[int]], kind: Callable[[Path], AuditLogger]
) -> list[str]:
    """Let each thread log its rounds, by one of two loggers; return what is wrong afterwards."""
    path = folder / "audit.jsonl"
    loggers = [kind(path), kind(path)]
    logged: list[int] = []

    def log_all(logger: AuditLogger, numbers: Sequence[int]) -> None:
        logged.extend(number for number in numbers if logger.append(entry(number)))

    def of(thread: int) -> Callable[[], None]:
        return lambda: log_all(loggers[thread % 2], rounds[thread])

    raised = together(*map(of, range(len(rounds))))
    report = verify(path, key=loggers[0]._key)
    twice = [number for number, times in Counter(logged).items() if times > 1]
    wanted = {number for numbers in rounds for number in numbers}
    missing = [] if report.entries == len(wanted) else [f"{report.entries} of {len(wanted)} lines"]
    return [*map(repr, raised), *report.problems, *(f"{n} logged twice" for n in twice), *missing]


@examples(15)
@given(rounds=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=5), min_size=2, max_size=4))
def test_threads_log_the_same_and_other_rounds(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[int]]
) -> None:
    assert hunted(tmp_path_factory.mktemp("audit"), rounds, AuditLogger) == []


def test_a_planted_race_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    rounds = [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]]
    assert any(
        hunted(tmp_path_factory.mktemp("audit"), rounds, UnlockedLogger) for _ in attempts(50)
    )
