"""Fleets of real processes: they start, run their share, and never outlive their owner."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from simulation.errors import DatasetError, FleetError
from simulation.fleet.fleet import Fleet, FleetConfig, FleetResult
from simulation.fleet.training_places import spread

ROOT = Path(__file__).parents[3]
DEADLINE_S = 30.0  # only a hanging test takes that long


def write_items(paths: Sequence[Path]) -> None:
    """Leave a file per item that says which process had it."""
    for path in paths:
        path.write_text(str(os.getpid()))


def touch_and_hang(paths: Sequence[Path]) -> None:
    """Tell through the FIFO that the process runs, then wait for a signal."""
    for path in paths:
        path.write_text(f"{os.getpid()}\n")
    while True:
        signal.pause()


def ignore_sigterm_and_hang(paths: Sequence[Path]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    touch_and_hang(paths)


def exit_with(codes: Sequence[int]) -> None:
    print("this must not disturb the supervisor's reports")  # noqa: T201
    sys.exit(codes[0])


def note_preparation(paths: Sequence[Path]) -> None:
    for path in paths:
        path.with_suffix(".prepared").write_text(str(os.getpid()))


def fail_to_prepare(items: Sequence[object]) -> None:
    message = f"{len(items)} items have no data"
    raise DatasetError(message)


def die_preparing(items: Sequence[object]) -> None:
    del items
    os._exit(7)


def wait_for_writers(fifo: Path, count: int) -> None:
    """Return once `count` lines came out of a FIFO."""
    # Open for writing too: then a reader never sees the end between two writers.
    with os.fdopen(os.open(fifo, os.O_RDWR)) as lines:
        for _ in range(count):
            assert lines.readline()


def has_ended(descriptor: int) -> bool:
    """Wait, without polling, until the process behind a pidfd has ended."""
    ready, _, _ = select.select([descriptor], [], [], DEADLINE_S)
    os.close(descriptor)
    return bool(ready)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "started"
    os.mkfifo(path)
    return path


def test_every_item_goes_to_exactly_one_slot() -> None:
    slots = spread(range(10), 4)
    assert sorted(item for slot in slots for item in slot) == list(range(10))
    assert sorted(map(len, slots)) == [2, 2, 3, 3]
    assert spread([1, 2], 32) == ((1,), (2,))


@pytest.mark.slow
def test_three_processes_run_the_target_after_one_preparation(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(3)]
    with Fleet(paths, write_items, prepare=note_preparation) as fleet:
        pids = fleet.wait_started()
        assert fleet.wait(DEADLINE_S) == FleetResult(exit_codes=(0, 0, 0))
    assert not fleet.is_running
    assert [int(path.read_text()) for path in paths] == list(pids)
    preparers = {path.with_suffix(".prepared").read_text() for path in paths}
    assert len(preparers) == 1
    assert len({*pids, os.getpid(), int(preparers.pop())}) == 5
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_a_fleet_that_waits_starts_when_it_is_released(tmp_path: Path) -> None:
    paths = [tmp_path / "item"]
    config = FleetConfig(waits=True)
    with Fleet(paths, write_items, prepare=note_preparation, config=config) as fleet:
        with pytest.raises(TimeoutError):
            fleet.wait(0)
        assert not paths[0].exists()
        fleet.release()
        assert fleet.wait(DEADLINE_S) == FleetResult(exit_codes=(0,))
    assert paths[0].exists()
    with Fleet(paths, write_items, config=config) as unreleased:
        assert unreleased.stop() == FleetResult()


@pytest.mark.slow
def test_more_items_than_processes_share_processes(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(5)]
    with Fleet(paths, write_items, config=FleetConfig(max_processes=2)) as fleet:
        first, second = fleet.wait_started()
        fleet.wait(DEADLINE_S)
    owners = [int(path.read_text()) for path in paths]
    assert owners == [first, second, first, second, first]


@pytest.mark.slow
def test_stop_ends_running_processes_and_leaves_none(fifo: Path) -> None:
    with Fleet([fifo] * 3, touch_and_hang) as fleet:
        pids = fleet.wait_started()
        wait_for_writers(fifo, 3)
        assert all(map(is_alive, pids))
        with pytest.raises(TimeoutError):
            fleet.wait(0)
        assert fleet.stop() == FleetResult(exit_codes=(-signal.SIGTERM,) * 3)
        assert fleet.stop() == fleet.wait()  # may be repeated
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_a_process_that_ignores_sigterm_is_killed(fifo: Path) -> None:
    with Fleet([fifo], ignore_sigterm_and_hang, config=FleetConfig(grace_s=0.0)) as fleet:
        (pid,) = fleet.wait_started()
        wait_for_writers(fifo, 1)
        assert fleet.stop().exit_codes == (-signal.SIGKILL,)
    assert not is_alive(pid)


@pytest.mark.slow
def test_exit_codes_are_reported_and_output_does_not_disturb_the_report(tmp_path: Path) -> None:
    log_path = tmp_path / "fleet.log"
    with Fleet([0, 3], exit_with, config=FleetConfig(log_path=log_path)) as fleet:
        assert fleet.wait(DEADLINE_S).exit_codes == (0, 3)
    assert log_path.read_text().count("must not disturb") == 2


@pytest.mark.slow
def test_a_failing_preparation_is_told_in_its_own_words() -> None:
    fleet = Fleet([1, 2], exit_with, prepare=fail_to_prepare)
    fleet.start()
    for _ in range(2):
        with pytest.raises(FleetError, match="2 items have no data"):
            fleet.wait_started()
    with pytest.raises(FleetError, match="2 items have no data"):
        fleet.stop()


@pytest.mark.slow
def test_a_dying_supervisor_is_an_error() -> None:
    fleet = Fleet([1], exit_with, prepare=die_preparing)
    fleet.start()
    with pytest.raises(FleetError, match="status 7"):
        fleet.wait(DEADLINE_S)


OWNER = """
import sys
from pathlib import Path
from simulation.fleet.fleet import Fleet
from tests.simulation.fleet.test_fleet import touch_and_hang

fleet = Fleet([Path(sys.argv[1])] * 2, touch_and_hang)
fleet.start()
print(*fleet.wait_started(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open")
def test_processes_die_when_their_owner_is_killed(fifo: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(fifo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        wait_for_writers(fifo, 2)
        descriptors = [os.pidfd_open(pid) for pid in pids]
        owner.kill()
        assert all(map(has_ended, descriptors))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open and /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_die_with_their_supervisor(fifo: Path, number: signal.Signals) -> None:
    fleet = Fleet([fifo] * 2, touch_and_hang)
    fleet.start()
    pids = fleet.wait_started()
    wait_for_writers(fifo, 2)
    descriptors = [os.pidfd_open(pid) for pid in pids]
    status = Path(f"/proc/{pids[0]}/status").read_text()
    supervisor = int(status.split("PPid:")[1].split()[0])
    os.kill(supervisor, number)
    assert all(map(has_ended, descriptors))
    if number == signal.SIGTERM:
        assert fleet.wait(DEADLINE_S).exit_codes == (-signal.SIGTERM,) * 2
    else:
        with pytest.raises(FleetError, match="status -9"):
            fleet.wait(DEADLINE_S)


@pytest.mark.slow
def test_the_supervisor_forks_without_grpc_and_without_threads(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    with Fleet([path], write_process_facts) as fleet:
        fleet.wait(DEADLINE_S)
    assert json.loads(path.read_text()) == {"grpc": False, "threads": 1}


def write_process_facts(paths: Sequence[Path]) -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    paths[0].write_text(json.dumps({"grpc": "grpc" in sys.modules, "threads": threads}))


def test_misuse_is_refused() -> None:
    with pytest.raises(FleetError, match="at least one item"):
        Fleet([], write_items)
    with pytest.raises(FleetError, match="not started"):
        Fleet([Path("x")], write_items).wait()
    with pytest.raises(FleetError, match="max_processes=0"):
        FleetConfig(max_processes=0)
