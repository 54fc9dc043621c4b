"""What is told of processes that start slowly, and of those that die."""

import asyncio
import signal
from pathlib import Path

import pytest

from cli.demo.watch import ProcessWatch, Waiting, ended, last_line
from cli.exit_codes import CliError
from server.processes.child_process import ProcessSpec
from server.processes.supervisor import ProcessEvent, ProcessEventKind, StartupError

READY, EXITED = ProcessEventKind.READY, ProcessEventKind.EXITED


def watched(folder: Path) -> tuple[ProcessWatch, list[str]]:
    said: list[str] = []
    specs = [
        ProcessSpec(name=name, command=("true",), log_path=folder / f"{name}.log")
        for name in ("store", "coordinator-1")
    ]
    return ProcessWatch(specs, said.append), said


def event(kind: ProcessEventKind, name: str, code: int | None = None, pid: int = 7) -> ProcessEvent:
    return ProcessEvent(kind=kind, name=name, pid=pid, exit_code=code)


async def test_a_process_that_dies_is_told_with_its_own_last_line(tmp_path: Path) -> None:
    watch, said = watched(tmp_path)
    (tmp_path / "store.log").write_text("loading\nout of disk\n\n")
    (tmp_path / "coordinator-1.log").write_text("all is well\n")
    watch.observe(event(READY, "store"))
    watch.observe(event(EXITED, "store", 1))
    log = tmp_path / "store.log"
    assert said == [
        f"store ended with status 1: out of disk; it is started again, its log is {log}"
    ]
    error = watch.never_ready(StartupError("store reported: no", process="store"))
    assert str(error) == "store reported: no: out of disk"


async def test_one_that_dies_again_and_again_is_a_fault(tmp_path: Path) -> None:
    watch, said = watched(tmp_path)
    fault = asyncio.ensure_future(watch.fault())
    watch.observe(event(READY, "store"))
    watch.observe(event(READY, "coordinator-1"))
    for _ in range(3):
        watch.observe(event(EXITED, "store", -signal.SIGKILL))
        watch.observe(event(EXITED, "coordinator-1", -signal.SIGKILL, pid=8))
    assert (len(said), fault.done()) == (6, False)
    watch.observe(event(EXITED, "store", -signal.SIGSEGV))
    with pytest.raises(CliError, match=r"store was killed by SIGSEGV: it wrote no log \(time 4\)"):
        await fault


async def test_deaths_that_are_meant_are_not_told(tmp_path: Path) -> None:
    watch, said = watched(tmp_path)
    watch.expect(7)
    watch.observe(event(EXITED, "coordinator-1", -signal.SIGKILL))
    watch.stopping()
    watch.observe(event(READY, "store"))
    watch.observe(event(EXITED, "store", 0, pid=9))
    assert said == []


async def test_one_that_was_never_ready_is_the_supervisors_to_tell(tmp_path: Path) -> None:
    watch, said = watched(tmp_path)
    watch.observe(event(READY, "store"))
    watch.observe(event(EXITED, "coordinator-1", 1))
    watch.observe(event(EXITED, "store", 0))
    assert said == []


async def test_readiness_of_all_can_be_waited_for(tmp_path: Path) -> None:
    watch, _ = watched(tmp_path)
    waiting = asyncio.ensure_future(watch.ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.all_ready()
    await waiting


async def test_what_is_not_ready_is_known(tmp_path: Path) -> None:
    watch, _ = watched(tmp_path)
    assert watch.starting == ["store", "coordinator-1"]
    watch.observe(event(READY, "store"))
    assert watch.starting == ["coordinator-1"]
    watch.expect(7)
    watch.observe(event(EXITED, "store", 1))
    assert watch.starting == ["store", "coordinator-1"]


def test_patience_speaks_every_ten_seconds_without_progress() -> None:
    now, said = 0.0, list[str]()
    patience = Waiting(said.append, lambda: "devices start", clock=lambda: now)
    for second in range(26):
        now = float(second)
        patience.tick()
    assert said == [f"still waiting after {n} s: devices start" for n in (10, 20)]
    patience.progressed()
    now = 34.0
    patience.tick()
    assert len(said) == 2
    now = 35.0
    patience.tick()
    assert said[-1] == "still waiting after 10 s: devices start"


def test_ends_and_last_lines_are_told_in_words(tmp_path: Path) -> None:
    assert ended(-9) == "was killed by SIGKILL"
    assert ended(3) == "ended with status 3"
    log = tmp_path / "log"
    assert last_line(log) == "it wrote no log"
    log.write_text("\n")
    assert last_line(log) == "it wrote no log"
    log.write_bytes(b"x" * 100_000 + b"\n" + b"y" * 600 + b"\n")
    assert last_line(log) == "y" * 500
