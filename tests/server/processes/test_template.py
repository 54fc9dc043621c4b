"""Processes that are forked from a template: whose they are, what they have, what outlives what."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.processes.child_process import ProcessSpec, module_command
from server.processes.fork_server import ForkRequest
from server.processes.supervisor import ProcessEventKind, RestartPolicy, StartupError, Supervisor
from server.processes.template import ForkedProcess, ForkError, Template
from tests.server.processes.test_supervisor import Diary

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="no process adopts another one's children"),
]

ROOT = Path(__file__).parents[3]
PROGRAMS = "tests.server.processes.programs"
STARTED, READY = ProcessEventKind.STARTED, ProcessEventKind.READY
EXITED, RESTARTING = ProcessEventKind.EXITED, ProcessEventKind.RESTARTING
DEADLINE_S = 60.0  # only a hanging test takes that long


def spec(name: str, *arguments: str, **more: Any) -> ProcessSpec:
    return ProcessSpec(name=name, command=module_command(PROGRAMS, *arguments), **more)


def template_of(*arguments: str, **more: Any) -> Template:
    environment = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "3"}
    return Template({PROGRAMS: arguments}, environment=environment, **more)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


class Running:
    """A template that a supervisor keeps, and what happened to it."""

    def __init__(self, template: Template, diary: Diary) -> None:
        self.template = template
        self.diary = diary

    async def template_pid(self, *, count: int = 1) -> int:
        return (await self.diary.wait_for(READY, "template", count=count)).pid

    async def facts(self, path: Path) -> Any:
        process = await self.template.fork(spec("facts", "facts", str(path)))
        assert await process.wait() == 0
        return read(path)


@asynccontextmanager
async def running(
    template: Template, *specs: ProcessSpec, restart: RestartPolicy | None = None
) -> AsyncIterator[Running]:
    diary = Diary()
    with template:
        supervisor = Supervisor(
            [*template.specs, *specs],
            on_event=diary,
            restart=restart or RestartPolicy(initial_s=0.01, max_s=0.1),
        )
        serving = asyncio.create_task(supervisor.run())
        try:
            await diary.wait_for(READY, "template")
            yield Running(template, diary)
        finally:
            supervisor.stop()
            await serving


class Pipe:
    """A pipe on which forked processes say something, one line each."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()

    def __enter__(self) -> "Pipe":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reads)
        os.close(self.writes)

    def spec(self, name: str, action: str = "wait", **more: Any) -> ProcessSpec:
        return spec(name, action, str(self.writes), pass_fds=(self.writes,), **more)

    def name(self) -> str:
        return str(Path(f"/proc/self/fd/{self.writes}").readlink())

    async def line(self) -> str:
        return (await asyncio.to_thread(os.read, self.reads, 64)).decode().strip()


def has_ended(pidfd: int) -> bool:
    readable, _, _ = select.select([pidfd], [], [], DEADLINE_S)
    os.close(pidfd)
    return bool(readable)


async def reaped(pid: int) -> None:
    """Wait until a process that has ended is no zombie any more."""
    async with asyncio.timeout(DEADLINE_S):
        while psutil.pid_exists(pid):  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(0)


async def test_a_forked_process_is_a_child_of_who_asked_with_its_own_session(
    tmp_path: Path,
) -> None:
    async with running(template_of("seen")) as run:
        facts = await run.facts(tmp_path / "facts")
        assert facts["parent"] == os.getpid()
        assert facts["session"] == facts["pid"]
        assert facts["pid"] != await run.template_pid()
        assert facts["preloaded"] == ["seen"]
        assert facts["threads"] == 1


async def test_it_has_its_arguments_name_environment_and_files_and_no_others(
    tmp_path: Path,
) -> None:
    log, path = tmp_path / "log", tmp_path / "facts"
    async with running(template_of()) as run:
        with Pipe() as pipe:
            process = await run.template.fork(
                spec(
                    "one",
                    *("facts", str(path)),
                    pass_fds=(pipe.writes,),
                    environment={"SET": "here"},
                    log_path=log,
                )
            )
            assert await process.wait() == 0
            facts = json.loads(path.read_text())
            assert facts["arguments"] == [PROGRAMS, "facts", str(path)]
            assert facts["command"].startswith(f"one {PROGRAMS} facts")
            assert facts["name"] == "one"
            assert facts["set"] == "here"
            assert {name: target for name, target in facts["files"].items() if name != "3"} == {
                "0": os.devnull,
                "1": str(log),
                "2": str(log),
                str(pipe.writes): pipe.name(),
            }


async def test_a_template_that_compiled_starts_once_more_without_what_that_took(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    async with running(template_of("compile", str(told))) as run:
        pid = await run.template_pid()
        assert (await run.facts(tmp_path / "facts"))["preloaded"] == ["compile", str(told)]
        assert lines(told) == [f"compiled in process {pid}"] * 2
        assert len(run.diary.of(STARTED, "template")) == 1


async def test_no_two_processes_draw_the_same(tmp_path: Path) -> None:
    """Not though the template drew from every source before, and later ones after earlier ones."""
    async with running(template_of()) as run:
        paths = [tmp_path / f"drawn-{number}" for number in range(4)]
        forks = [run.template.fork(spec("draws", "drawn", str(path))) for path in paths]
        for process in await asyncio.gather(*forks):
            assert await process.wait() == 0
        drawn = [json.loads(path.read_text()) for path in paths]
    for source in drawn[0]:
        assert len({draws[source] for draws in drawn}) == len(paths), source


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("return", "0"), 0, ""),
        (("return", "3"), 3, ""),
        (("exit", "wrong"), 1, "wrong\n"),
        (("fail", "no luck"), 1, "RuntimeError: no luck\n"),
    ],
)
async def test_how_a_program_ends_is_its_status(
    tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    async with running(template_of()) as run:
        process = await run.template.fork(spec("ends", *arguments, log_path=tmp_path / "log"))
        assert await process.wait() == status
        assert process.returncode == status
        assert (tmp_path / "log").read_text().endswith(told)
        process.terminate()  # it is nobody's business any more
        process.kill()


async def test_a_killed_process_is_replaced_within_half_a_second() -> None:
    with Pipe() as pipe:
        template = template_of()

        async def ready() -> None:
            await pipe.line()

        worker = pipe.spec("worker", stage=1, forker=template, ready=ready)
        # As of a service whose processes live for long.
        policy = RestartPolicy(reset_after_s=0)
        async with running(template, worker, restart=policy) as run:
            took_s = []
            for count in (1, 2, 3):
                pid = (await run.diary.wait_for(READY, "worker", count=count)).pid
                os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
                after = await run.diary.wait_for(READY, "worker", count=count + 1)
                took_s.append(time.monotonic() - killed_at)
                assert after.pid != pid
        assert min(took_s) < 0.5  # the others, where this machine was busy
        assert run.diary.of(EXITED, "worker")[0].exit_code == -signal.SIGKILL


async def test_a_process_that_dies_at_once_is_started_more_and_more_rarely() -> None:
    template = template_of()
    crashing = spec("crashing", "return", "1", stage=1, forker=template)
    async with running(template, crashing, restart=RestartPolicy(initial_s=0.01)) as run:
        await run.diary.wait_for(RESTARTING, "crashing", count=4)
        delays = [event.delay_s for event in run.diary.of(RESTARTING, "crashing")[:4]]
        assert delays == [0.01, 0.02, 0.04, 0.08]


async def test_processes_outlive_their_template_and_the_next_one_forks(tmp_path: Path) -> None:
    async with running(template_of()) as run:
        with Pipe() as pipe:
            process = await run.template.fork(pipe.spec("waits"))
            await pipe.line()
            before = await run.template_pid()
            os.kill(before, signal.SIGKILL)
            # Asked for while there is no template: it waits.
            facts = await run.facts(tmp_path / "facts")
            assert facts["parent"] == os.getpid()
            assert await run.template_pid(count=2) != before
            assert process.returncode is None
            process.terminate()
            assert await process.wait() == -signal.SIGTERM


async def test_a_template_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    async with running(template_of(patience_s=0.2)) as run:
        stopped = await run.template_pid()
        os.kill(stopped, signal.SIGSTOP)
        assert (await run.facts(tmp_path / "facts"))["threads"] == 1
        assert await run.template_pid(count=2) != stopped
        (exited,) = run.diary.of(EXITED, "template")
        assert (exited.pid, exited.exit_code) == (stopped, -signal.SIGKILL)


async def test_what_cannot_be_loaded_is_told_before_anything_is_forked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Template({"no.such.program": []}, log_path=log) as template:
        waiting = ProcessSpec(
            name="worker", command=module_command("no.such.program"), stage=1, forker=template
        )
        with pytest.raises(StartupError, match="template ended with status 1 before it was ready"):
            await Supervisor([*template.specs, waiting]).run()
    assert "No module named 'no'" in log.read_text()


@pytest.mark.parametrize("is_forked", [True, False])
async def test_what_a_process_leaves_behind_is_killed_and_reaped(is_forked: bool) -> None:
    with Pipe() as pipe:
        template = template_of()
        worker = pipe.spec(
            "worker",
            "wait-with-child",
            stage=1,
            forker=template if is_forked else None,
            environment={"PYTHONPATH": str(ROOT)},
        )
        async with running(template, worker, restart=RestartPolicy(initial_s=3600)) as run:
            left = int(await pipe.line())
            pidfd = os.pidfd_open(left)
            os.kill((await run.diary.wait_for(READY, "worker")).pid, signal.SIGKILL)
            assert await asyncio.to_thread(has_ended, pidfd)
            await reaped(left)


OWNER = f"""
import asyncio, os, sys
from server.processes.child_process import ProcessSpec, module_command
from server.processes.template import Template
from server.processes.supervisor import Supervisor

async def main():
    with Template({{{PROGRAMS!r}: []}}) as template:
        command = module_command({PROGRAMS!r}, "wait", sys.argv[1])
        workers = [
            ProcessSpec(name=name, command=command, pass_fds=(int(sys.argv[1]),), stage=1,
                        forker=template)
            for name in ("a", "b")
        ]
        def tell(event):
            if event.kind.value == "started":
                print(event.pid, flush=True)
        await Supervisor([*template.specs, *workers], on_event=tell).run()

asyncio.run(main())
"""


def test_everything_dies_with_who_asked_for_it() -> None:
    with (
        Pipe() as pipe,
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(pipe.writes)],
            stdout=subprocess.PIPE,
            pass_fds=(pipe.writes,),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ) as owner,
    ):
        assert owner.stdout is not None
        pids = [int(owner.stdout.readline()) for _ in range(3)]  # the template's is the first
        heard = b""
        while len(heard) < 2:  # both wait
            heard += os.read(pipe.reads, 2)
        descriptors = [os.pidfd_open(pid) for pid in pids]
        owner.kill()
        assert all(map(has_ended, descriptors))


class FakeTemplate:
    """Speaks for a template, over the socket that one would have."""

    def __init__(self, template: Template) -> None:
        (own,) = template.specs
        self.socket = socket.socket(fileno=os.dup(own.pass_fds[0]))
        self.ready: Callable[[], Awaitable[None]] | None = own.ready

    async def says(self, **message: object) -> None:
        self.socket.send(json.dumps(message).encode())
        await asyncio.sleep(0)

    async def comes(self, name: str, *, pid: int = 0) -> None:
        """Say that it is ready."""
        assert self.ready is not None
        waiting = asyncio.ensure_future(self.ready())
        await asyncio.sleep(0)
        await self.says(template=name, pid=pid or os.getpid())
        await waiting

    async def hears(self) -> ForkRequest:
        data, fds, _, _ = await asyncio.to_thread(socket.recv_fds, self.socket, 1 << 17, 8)
        for fd in fds:
            os.close(fd)
        return ForkRequest.of_bytes(data)


def a_child() -> int:
    return os.posix_spawn(
        sys.executable, [sys.executable, "-c", "import signal; signal.pause()"], {}
    )


async def test_a_fork_that_fails_is_an_error_of_the_one_who_asked() -> None:
    with template_of() as template:
        fake = FakeTemplate(template)
        await fake.comes("first")
        forking = asyncio.ensure_future(template.fork(spec("one", "facts", "x")))
        request = await fake.hears()
        await fake.says(number=request.number, error="Cannot allocate memory")
        with pytest.raises(ForkError, match="Cannot allocate memory"):
            await forking
        fake.socket.close()


async def test_what_one_template_did_not_answer_the_next_is_asked() -> None:
    with template_of() as template:
        fake = FakeTemplate(template)
        await fake.comes("first")
        forking = asyncio.ensure_future(template.fork(spec("one", "facts", "x")))
        first = await fake.hears()
        assert (first.template, first.parent) == ("first", os.getpid())
        await fake.comes("second")
        second = await fake.hears()
        assert (second.template, second.number) == ("second", first.number)
        child = a_child()
        await fake.says(number=second.number, pid=child)
        process = await forking
        assert process.pid == child
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        fake.socket.close()


async def test_a_template_that_died_before_it_was_killed_is_waited_for_like_any_other() -> None:
    with template_of(patience_s=0.001) as template:
        fake, dead = FakeTemplate(template), a_child()
        await fake.comes("dead", pid=dead)
        os.kill(dead, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, dead, 0)
        forking = asyncio.ensure_future(template.fork(spec("one", "facts", "x")))
        await fake.hears()
        async with asyncio.timeout(DEADLINE_S):
            while template._pidfd is not None:  # noqa: ASYNC110  # until its patience ends
                await asyncio.sleep(0)
        following = a_child()
        await fake.comes("next", pid=following)
        request = await fake.hears()
        child = a_child()
        await fake.says(number=request.number, pid=child)
        process = await forking
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        os.kill(following, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, following, 0)
        fake.socket.close()


async def test_a_process_that_nobody_waits_for_any_more_is_ended() -> None:
    with template_of() as template:
        fake = FakeTemplate(template)
        await fake.comes("first")
        forking = asyncio.ensure_future(template.fork(spec("one", "facts", "x")))
        request = await fake.hears()
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        child = a_child()
        pidfd = os.pidfd_open(child)
        await fake.says(number=request.number, pid=child)
        assert await asyncio.to_thread(has_ended, pidfd)
        await reaped(child)
        fake.socket.close()


class FailingForker:
    """Forks the second time."""

    def __init__(self, *outcomes: int | OSError) -> None:
        self._outcomes = list(outcomes)

    async def fork(self, spec: ProcessSpec) -> ForkedProcess:
        del spec
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return ForkedProcess(outcome)


async def test_a_process_that_cannot_be_started_is_told_if_none_was_ever_ready() -> None:
    one = spec("worker", forker=FailingForker(ForkError("no process could be forked")))
    with pytest.raises(StartupError, match=r"worker could not be started \(no process"):
        await Supervisor([one]).run()


async def test_and_is_tried_again_if_one_was() -> None:
    first, second = a_child(), a_child()
    forker = FailingForker(first, ForkError("not now"), second)
    diary = Diary()
    supervisor = Supervisor(
        [spec("worker", forker=forker)], on_event=diary, restart=RestartPolicy(initial_s=0.001)
    )
    running = asyncio.create_task(supervisor.run())
    await diary.wait_for(READY, "worker")
    os.kill(first, signal.SIGKILL)
    assert (await diary.wait_for(READY, "worker", count=2)).pid == second
    assert [event.pid for event in diary.of(RESTARTING, "worker")] == [first, 0]
    supervisor.stop()
    await running


async def test_a_process_that_waits_for_a_template_is_given_up_with_the_rest() -> None:
    with template_of() as template:
        supervisor = Supervisor([spec("worker", "facts", "x", forker=template)])
        running = asyncio.create_task(supervisor.run())
        await asyncio.sleep(0)
        supervisor.stop()
        await asyncio.wait_for(running, DEADLINE_S)
