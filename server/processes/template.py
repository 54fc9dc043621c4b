"""Asks a fork server for processes, and adopts them."""

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from server.processes.child_process import Forker, ProcessSpec, module_command, module_of
from server.processes.fork_server import MAX_MESSAGE_BYTES, ForkRequest

PATIENCE_S: Final = 10.0
"""A template that answers no request for so long is replaced: it may have been stopped."""

# Elsewhere a process cannot become the parent of what another one forked.
_CAN_ADOPT: Final = sys.platform == "linux"
_FORK_SERVER: Final = "server.processes.fork_server"
_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)
_STDOUT: Final = 1
_STDERR: Final = 2


class ForkError(OSError):
    """The template could not fork, as where the system allows no further process."""


class ForkedProcess:
    """A process that was forked for this one: its child, though another process forked it.

    Make it on the event loop that will wait for it.

    Attributes:
        pid: process id; it is nobody else's until the process has been waited for.
        returncode: status it ended with, negative for a signal; None while it runs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        loop.add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        """Wait for the end of the process; return its status."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Send SIGTERM, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(self.returncode)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request that has no answer yet."""

    spec: ProcessSpec
    fds: tuple[int, ...]
    answer: "asyncio.Future[int]"


class Template:
    """A process that has loaded programs, and forks them on demand.

    A supervisor runs it as any other process, by `specs`, and gives the processes that name it as
    their `forker` a later stage. They do not end with it: where it dies, the supervisor starts it
    again, and requests wait until then.

    A context, for one event loop. While it is entered, this process adopts orphans among its
    descendants, which the supervisor reaps.

    Args:
        programs: modules that it loads, each with the arguments of its `preload`; see
            `server.processes.fork_server`.
        environment: set before anything is loaded, in addition to that of this process.
        name: of the process, for people.
        log_path: as in `ProcessSpec`.
        patience_s: how long a request may stay unanswered before the template is killed.
    """

    def __init__(
        self,
        programs: Mapping[str, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        name: str = "template",
        log_path: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._programs = programs
        self._environment = dict(environment or {})
        self._name = name
        self._log_path = log_path
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._hellos = asyncio.Semaphore(0)
        self._template = ""
        self._pidfd: int | None = None
        self._serves_since = 0.0
        self._is_listening = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not _CAN_ADOPT:
            return self
        self._mine, self._its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mine.setblocking(False)
        self._stack.callback(self._its.close)
        self._stack.callback(self._mine.close)
        self._stack.callback(_adopt_orphans(True))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._forget_template()
        self._stack.close()

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """The template's own process, for a supervisor; none where the system cannot have one."""
        if not _CAN_ADOPT:
            return ()
        control = self._its.fileno()
        programs = {name: list(arguments) for name, arguments in self._programs.items()}
        return (
            ProcessSpec(
                name=self._name,
                command=module_command(_FORK_SERVER, str(control), json.dumps(programs)),
                environment=self._environment,
                pass_fds=(control,),
                ready=self._ready,
                log_path=self._log_path,
            ),
        )

    @property
    def forker(self) -> Forker | None:
        """What processes name that are to be forked; None where the system has them executed."""
        return self if _CAN_ADOPT else None

    async def fork(self, spec: ProcessSpec) -> ForkedProcess:
        """Fork one process; wait for the template where it is not there.

        Raises:
            ForkError: if the template could not.
        """
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, stdin)
            stdout, stderr = _STDOUT, _STDERR
            if spec.log_path is not None:
                stdout = stderr = stack.enter_context(
                    spec.log_path.open("ab", buffering=0)
                ).fileno()
            self._asked[number] = _Asked(
                spec=spec, fds=(stdin, stdout, stderr, *spec.pass_fds), answer=answer
            )
            try:
                self._send(number)
                pid = await self._answer(answer)
            finally:
                # Whatever answers now is ended: nobody waits for it.
                del self._asked[number]
        return ForkedProcess(pid)

    async def _answer(self, answer: "asyncio.Future[int]") -> int:
        asked_at = time.monotonic()
        while not (await asyncio.wait([answer], timeout=self._patience_s))[0]:
            since = max(asked_at, self._serves_since)
            if self._pidfd is not None and time.monotonic() - since >= self._patience_s:
                with contextlib.suppress(ProcessLookupError):  # it has died by itself
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                self._forget_template()
        return answer.result()

    async def _ready(self) -> None:
        """Return when the template that was just started can fork."""
        if not self._is_listening:
            self._is_listening = True
            loop = asyncio.get_running_loop()
            loop.add_reader(self._mine, self._hear)
        await self._hellos.acquire()

    def _send(self, number: int) -> None:
        """Send a request to the template that is there; to none: it is sent when there is one."""
        if not self._template:
            return
        asked = self._asked[number]
        module, arguments = module_of(asked.spec.command)
        message = ForkRequest(
            template=self._template,
            number=number,
            parent=os.getpid(),
            name=asked.spec.name,
            module=module,
            arguments=arguments,
            environment=asked.spec.environment,
            fds=(0, _STDOUT, _STDERR, *asked.spec.pass_fds),
        )
        # A full socket: the template does not read, and will be replaced.
        with contextlib.suppress(BlockingIOError):
            socket.send_fds(self._mine, [message.to_bytes()], asked.fds)

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            message = json.loads(self._mine.recv(MAX_MESSAGE_BYTES))
            if "template" in message:
                self._meet(message["template"], message["pid"])
            elif message["number"] in self._asked:
                self._settle(self._asked[message["number"]].answer, message)
            elif "pid" in message:
                ForkedProcess(message["pid"]).kill()

    def _settle(self, answer: "asyncio.Future[int]", message: Mapping[str, str | int]) -> None:
        if not answer.done() and "error" in message:
            answer.set_exception(ForkError(f"no process could be forked: {message['error']}"))
        elif not answer.done():
            answer.set_result(int(message["pid"]))

    def _meet(self, template: str, pid: int) -> None:
        """Ask a template that says it is ready for what the one before did not do.

        The one before, if it did fork, has said so already: messages keep their order. And what it
        left in the middle of a fork ends by itself.
        """
        self._forget_template()
        self._template = template
        self._serves_since = time.monotonic()
        with contextlib.suppress(ProcessLookupError):  # it has died since
            self._pidfd = os.pidfd_open(pid)
        self._hellos.release()
        for number, asked in self._asked.items():
            if not asked.answer.done():
                self._send(number)

    def _forget_template(self) -> None:
        self._template = ""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _adopt_orphans(adopts: bool) -> Callable[[], object]:
    """Let orphans among the descendants become children of this process; return the way back."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0)
    return lambda: prctl(_PR_SET_CHILD_SUBREAPER, int(not adopts), 0, 0, 0)
