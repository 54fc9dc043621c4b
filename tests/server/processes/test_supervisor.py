"""The supervisor on real processes: order, restarts, stopping, and what dies with it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.processes.child_process import ProcessSpec, tied_to_parent
from server.processes.supervisor import (
    WORKER_ENVIRONMENT,
    ProcessEvent,
    ProcessEventKind,
    RestartPolicy,
    StartupError,
    Supervisor,
    worker_environment,
)

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
STARTED, READY = ProcessEventKind.STARTED, ProcessEventKind.READY
EXITED, RESTARTING = ProcessEventKind.EXITED, ProcessEventKind.RESTARTING
WAIT_FOR_EVER = "import signal; signal.pause()"
SOON = RestartPolicy(initial_s=0.001, max_s=0.002, reset_after_s=3600)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def spec(
    name: str,
    code: str = WAIT_FOR_EVER,
    *,
    stage: int = 0,
    ready: Callable[[], Awaitable[None]] | None = None,
) -> ProcessSpec:
    return ProcessSpec(name=name, command=python(code), stage=stage, ready=ready)


class Diary:
    """Remembers events and lets tests wait for one."""

    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: ProcessEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def pairs(self) -> list[tuple[ProcessEventKind, str]]:
        return [(event.kind, event.name) for event in self.events]

    def of(self, kind: ProcessEventKind, name: str) -> list[ProcessEvent]:
        return [event for event in self.events if (event.kind, event.name) == (kind, name)]

    async def wait_for(self, kind: ProcessEventKind, name: str, *, count: int = 1) -> ProcessEvent:
        async with asyncio.timeout(20):
            while len(self.of(kind, name)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.of(kind, name)[count - 1]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pidfd: int) -> None:
    readable, _, _ = select.select([pidfd], [], [], 10)
    assert readable
    os.close(pidfd)


async def test_stages_start_in_order_and_stop_in_reverse() -> None:
    diary = Diary()
    store_is_ready = asyncio.Event()
    all_ready = asyncio.Event()

    async def store_ready() -> None:
        await store_is_ready.wait()

    supervisor = Supervisor(
        [spec("worker", stage=1), spec("store", ready=store_ready)],
        on_event=diary,
        on_ready=all_ready.set,
    )
    running = asyncio.create_task(supervisor.run())
    await diary.wait_for(STARTED, "store")
    assert diary.pairs() == [(STARTED, "store")]
    assert not all_ready.is_set()
    store_is_ready.set()
    await asyncio.wait_for(all_ready.wait(), 20)
    supervisor.stop()
    await running

    assert diary.pairs() == [
        (STARTED, "store"),
        (READY, "store"),
        (STARTED, "worker"),
        (READY, "worker"),
        (EXITED, "worker"),
        (EXITED, "store"),
    ]
    exits = [diary.of(EXITED, name)[0] for name in ("worker", "store")]
    assert [event.exit_code for event in exits] == [-signal.SIGTERM] * 2
    assert not any(is_running(event.pid) for event in exits)


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "raise SystemExit(3)"])
async def test_a_process_that_ends_is_started_again(code: str) -> None:
    diary = Diary()
    delays: list[float] = []

    async def no_wait(delay_s: float) -> None:
        delays.append(delay_s)

    supervisor = Supervisor([spec("worker", code)], on_event=diary, sleep=no_wait)
    running = asyncio.create_task(supervisor.run())
    await diary.wait_for(RESTARTING, "worker", count=4)
    supervisor.stop()
    await running

    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert [event.delay_s for event in diary.of(RESTARTING, "worker")][:4] == delays[:4]
    pids = [event.pid for event in diary.of(STARTED, "worker")]
    assert len(set(pids)) == len(pids) >= 4


async def test_a_killed_process_is_replaced_and_the_others_stay() -> None:
    diary = Diary()
    supervisor = Supervisor([spec("a"), spec("b")], on_event=diary, restart=SOON)
    running = asyncio.create_task(supervisor.run())
    first = await diary.wait_for(READY, "a")
    await diary.wait_for(READY, "b")
    os.kill(first.pid, signal.SIGKILL)
    second = await diary.wait_for(READY, "a", count=2)
    assert second.pid != first.pid
    assert (await diary.wait_for(EXITED, "a")).exit_code == -signal.SIGKILL
    assert diary.of(EXITED, "b") == []
    supervisor.stop()
    await running


async def test_a_restarted_process_that_is_not_ready_is_started_once_more() -> None:
    diary = Diary()
    attempts = 0

    async def ready() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            msg = "not this time"
            raise RuntimeError(msg)

    supervisor = Supervisor([spec("a", ready=ready)], on_event=diary, restart=SOON)
    running = asyncio.create_task(supervisor.run())
    first = await diary.wait_for(READY, "a")
    os.kill(first.pid, signal.SIGKILL)
    await diary.wait_for(READY, "a", count=2)
    assert len(diary.of(STARTED, "a")) == 3
    supervisor.stop()
    await running


async def test_a_process_that_ends_before_it_was_ever_ready_fails_the_start() -> None:
    diary = Diary()

    async def never() -> None:
        await asyncio.Event().wait()

    supervisor = Supervisor(
        [spec("good"), spec("bad", "raise SystemExit(7)", ready=never), spec("later", stage=1)],
        on_event=diary,
    )
    with pytest.raises(StartupError, match="bad ended with status 7 before it was ready"):
        await supervisor.run()
    assert len(diary.of(EXITED, "good")) == 1
    assert diary.of(STARTED, "later") == []


async def test_a_process_that_says_it_cannot_serve_fails_the_start() -> None:
    diary = Diary()

    async def broken() -> None:
        msg = "port is taken"
        raise RuntimeError(msg)

    supervisor = Supervisor([spec("a", ready=broken)], on_event=diary)
    with pytest.raises(StartupError, match="a reported: port is taken"):
        await supervisor.run()
    assert not is_running(diary.of(EXITED, "a")[0].pid)


async def test_a_command_that_does_not_exist_fails_the_start() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    missing = ProcessSpec(name="a", command=("/no/such/program",), ready=never)
    with pytest.raises(StartupError, match="a ended with status 1"):
        await Supervisor([missing]).run()


# Says on a pipe that it now ignores SIGTERM.
STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write({descriptor}, b"x")
while True:
    signal.pause()
"""


async def stubborn(stop_twice: bool, grace_s: float) -> ProcessEvent:
    reader, writer = os.pipe()

    async def ready() -> None:
        await asyncio.to_thread(os.read, reader, 1)

    diary = Diary()
    command = python(STUBBORN.format(descriptor=writer))
    process = ProcessSpec(name="a", command=command, pass_fds=(writer,), ready=ready)
    supervisor = Supervisor([process], on_event=diary, grace_s=grace_s)
    running = asyncio.create_task(supervisor.run())
    await diary.wait_for(READY, "a")
    supervisor.stop()
    if stop_twice:
        supervisor.stop()
    await asyncio.wait_for(running, 20)
    os.close(reader)
    os.close(writer)
    return diary.of(EXITED, "a")[0]


@pytest.mark.parametrize(("stop_twice", "grace_s"), [(False, 0.05), (True, 3600.0)])
async def test_a_process_that_does_not_stop_is_killed(stop_twice: bool, grace_s: float) -> None:
    exited = await stubborn(stop_twice, grace_s)
    assert exited.exit_code == -signal.SIGKILL


async def test_stopping_during_a_restart_delay_does_not_wait_for_it() -> None:
    diary = Diary()
    policy = RestartPolicy(initial_s=3600, max_s=3600)
    supervisor = Supervisor([spec("a", "")], on_event=diary, restart=policy)
    running = asyncio.create_task(supervisor.run())
    await diary.wait_for(RESTARTING, "a")
    supervisor.stop()
    await asyncio.wait_for(running, 20)
    assert len(diary.of(STARTED, "a")) == 1


async def test_stopping_before_readiness_stops_what_was_started() -> None:
    diary = Diary()

    async def never() -> None:
        await asyncio.Event().wait()

    ready: list[bool] = []
    supervisor = Supervisor(
        [spec("a", ready=never)], on_event=diary, on_ready=lambda: ready.append(True)
    )
    running = asyncio.create_task(supervisor.run())
    started = await diary.wait_for(STARTED, "a")
    supervisor.stop()
    await asyncio.wait_for(running, 20)
    assert not is_running(started.pid)
    assert ready == []


async def test_what_a_dead_process_left_behind_is_killed() -> None:
    """A worker that is killed must not leave the helpers it forked."""
    reader, writer = os.pipe()
    code = f"""
import os, signal
child = os.fork()
if child == 0:
    signal.pause()
os.write({writer}, str(child).encode())
signal.pause()
"""
    diary = Diary()
    process = ProcessSpec(name="a", command=python(code), pass_fds=(writer,))
    supervisor = Supervisor([process], on_event=diary, restart=RestartPolicy(initial_s=3600))
    running = asyncio.create_task(supervisor.run())
    grandchild = int(await asyncio.to_thread(os.read, reader, 20))
    watch = os.pidfd_open(grandchild)
    os.kill((await diary.wait_for(READY, "a")).pid, signal.SIGKILL)
    await asyncio.to_thread(wait_for_end, watch)
    supervisor.stop()
    await running
    os.close(reader)
    os.close(writer)


LAUNCHER = textwrap.dedent("""
    import asyncio, sys
    from server.processes.child_process import ProcessSpec
    from server.processes.supervisor import Supervisor

    announce = "import os, signal; os.write(1, b'%d\\\\n' % os.getpid()); signal.pause()"
    command = (sys.executable, "-I", "-S", "-c", announce)
    specs = [ProcessSpec(name=name, command=command) for name in "ab"]
    asyncio.run(Supervisor(specs).run())
    print("stopped", flush=True)
""")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_launcher_ends_every_process(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        watches = [os.pidfd_open(int(launcher.stdout.readline())) for _ in range(2)]
        launcher.send_signal(number)
        assert launcher.wait(20) == (-number if number is signal.SIGKILL else 0)
        for watch in watches:
            wait_for_end(watch)
        assert launcher.stdout.read() == ("" if number is signal.SIGKILL else "stopped\n")


def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    command = list(tied_to_parent(python("print('ran')")))
    command[command.index(str(os.getpid()))] = "1"  # as if the parent had another pid
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "parent is gone" in done.stderr


def test_a_tied_command_gets_its_arguments_and_default_signals() -> None:
    code = "import sys; print(sys.argv[1:]); print(open('/proc/self/status').read())"
    done = subprocess.run(
        tied_to_parent(["/bin/cat", "/proc/self/status"]), capture_output=True, check=True
    )
    (ignored,) = [line for line in done.stdout.splitlines() if line.startswith(b"SigIgn")]
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    arguments = ["a b", "", "-c", "$x"]
    done = subprocess.run(
        tied_to_parent([*python(code), *arguments]), capture_output=True, check=True
    )
    assert done.stdout.splitlines()[0].decode() == str(arguments)


async def test_children_get_their_environment() -> None:
    reader, writer = os.pipe()
    code = f"import os; os.write({writer}, os.environ['MALLOC_ARENA_MAX'].encode())"
    process = ProcessSpec(
        name="a",
        command=python(code),
        environment=worker_environment({}),
        pass_fds=(writer,),
    )
    supervisor = Supervisor([process], restart=RestartPolicy(initial_s=3600, max_s=3600))
    running = asyncio.create_task(supervisor.run())
    assert await asyncio.to_thread(os.read, reader, 10) == b"1"
    supervisor.stop()
    await running
    os.close(reader)
    os.close(writer)


def test_worker_environment_leaves_what_the_operator_set() -> None:
    assert worker_environment({}) == WORKER_ENVIRONMENT
    mine = worker_environment({"OMP_NUM_THREADS": "4", "HOME": "/"})
    assert "OMP_NUM_THREADS" not in mine
    assert mine.keys() | {"OMP_NUM_THREADS"} == WORKER_ENVIRONMENT.keys()


def test_restart_delays_double_up_to_a_limit_and_start_over_after_a_long_life() -> None:
    policy = RestartPolicy(initial_s=0.1, max_s=5.0, reset_after_s=10.0)
    delay: float | None = None
    delays = []
    for _ in range(8):
        delay = policy.delay_s(delay, 0.5)
        delays.append(delay)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert policy.delay_s(5.0, 9.99) == 5.0
    assert policy.delay_s(5.0, 10.0) == 0.1


def test_names_must_be_distinct() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Supervisor([spec("a"), spec("a")])


async def test_running_outside_the_main_thread_is_refused() -> None:
    def run() -> None:
        asyncio.run(Supervisor([]).run())

    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(run)
