"""A device's residual is begun, settled and read by threads that do not know of each other."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.compression.residual_store import ResidualStore
from client.state.private_files import PrivateFolder
from client.transport.messages import SubmissionKey
from tests.races.hunting import Unlocked, attempts, examples, together
from updates.error_feedback import Residual

DIM = 300
CALLS = ["begin", "commit", "drop", "pending", "current", "forget"]


def hunted(folder: Path, threads: Sequence[Sequence[str]], *, locked: bool) -> list[str]:
    """Let each thread make its calls; return what went wrong."""
    store = ResidualStore(PrivateFolder(folder), task="t", device_id="d")
    if not locked:
        store._lock = Unlocked()  # type: ignore[assignment]  # the planted race
    faults: list[str] = []

    def begin(number: int) -> None:
        key = SubmissionKey(
            task="t",
            round=number,
            device_id="d",
            submission_id=f"s{number}",
            payload_digest=bytes([number]) * 16,
        )
        store.begin(key, Residual(vector=np.full(DIM, number, np.float32), round=number))

    def pending() -> None:
        key = store.pending()
        if key is not None and key.submission_id != f"s{key.round}":
            faults.append(f"{key} was never begun")

    def current() -> None:
        residual = store.current(dim=DIM)
        if residual is not None and (residual.vector != residual.round).any():
            faults.append(f"the residual of round {residual.round} is of several rounds")

    def run(number: int, calls: Sequence[str]) -> None:
        doing: dict[str, Callable[[], object]] = {
            "begin": lambda: begin(number),
            "commit": store.commit,
            "drop": store.drop,
            "pending": pending,
            "current": current,
            "forget": store.forget,
        }
        for call in calls:
            doing[call]()

    def of(thread: int) -> Callable[[], None]:
        return lambda: run(thread + 1, threads[thread])

    raised = together(*map(of, range(len(threads))))
    pending()
    current()
    return [*faults, *map(repr, raised), *store.notices()]


@examples(30)
@given(
    threads=st.lists(
        st.lists(st.sampled_from(CALLS), min_size=1, max_size=6), min_size=2, max_size=3
    )
)
def test_threads_begin_settle_and_read(
    tmp_path_factory: pytest.TempPathFactory, threads: list[list[str]]
) -> None:
    assert hunted(tmp_path_factory.mktemp("residual"), threads, locked=True) == []


def test_a_planted_race_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    threads = [["begin", "commit", "current"] * 3] * 3
    assert any(
        hunted(tmp_path_factory.mktemp("residual"), threads, locked=False) for _ in attempts(50)
    )
