"""The process that has loaded programs and forks them: `python -m server.processes.fork_server`.

`server.processes.template` starts it and asks it for processes. It loads programs, says that it is
ready, and then forks one process for each request. What was loaded is in memory once, however many
processes run, and each of them is there in a tenth of a second.

A program is a module with `main(arguments) -> status`. One that also has `preload(arguments)` loads
there what its processes will need, and tells whether it had to compile any of it; it starts no
thread and leaves no file or connection open.

A process that was forked is a child of whoever asked for it, not of this process, which may die and
be started again meanwhile. That takes a process in between, whose end makes the child an orphan,
which the one who asks adopts (`PR_SET_CHILD_SUBREAPER`).
"""

import gc
import importlib
import json
import os
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from server.processes.forking import (
    begin_fork,
    make_forkable,
    open_fds,
    place_fds,
    rename_process,
)
from server.processes.process_end import end_process

MAX_MESSAGE_BYTES: Final = 1 << 17
MAX_FDS: Final = 64

_AGAIN: Final = "again"
_GO: Final = b"\n"
_PID_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """One process to fork.

    Attributes:
        template: which template is asked, by the name it gave itself; another one ignores it.
        number: of the request; the answer repeats it.
        parent: process id of the one who asks.
        name: of the process, for people.
        module: the program.
        arguments: its arguments.
        environment: set in addition to the template's.
        fds: under which numbers the process has the open files that come with the request.
    """

    template: str
    number: int
    parent: int
    name: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    fds: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Return the request as it is sent."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields).encode()

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Read a request."""
        fields = json.loads(data)
        return cls(
            **fields | {"arguments": tuple(fields["arguments"]), "fds": tuple(fields["fds"])}
        )


def main(arguments: Sequence[str]) -> int:
    """Load programs and fork them until nobody asks any more.

    Args:
        arguments: number of the control socket; a JSON object of modules, each with the arguments
            of its `preload`; `_AGAIN`, where this is the second time.
    """
    signal.signal(signal.SIGTERM, lambda *_: end_process(0))
    known_fds = open_fds()
    gc.disable()
    control = socket.socket(fileno=int(arguments[0]))
    has_compiled = _load(json.loads(arguments[1]))
    if has_compiled and arguments[-1] != _AGAIN:
        # All forks would share what the compiler leaves behind. Now they find it compiled.
        os.execv(sys.executable, [*sys.orig_argv, _AGAIN])  # noqa: S606  # this very program
    make_forkable(known_fds=known_fds)
    mine = secrets.token_hex(8)
    _tell(control, template=mine, pid=os.getpid())
    while True:
        data, fds, _, _ = socket.recv_fds(
            control, MAX_MESSAGE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return 0
        request = ForkRequest.of_bytes(data)
        if request.template == mine:
            _fork(control, request, fds)
        for fd in fds:
            os.close(fd)


def _load(programs: Mapping[str, Sequence[str]]) -> bool:
    """Import the programs and have them load what they need; tell whether any compiled it."""
    compiled = []
    for name, arguments in programs.items():
        module = importlib.import_module(name)
        preload = getattr(module, "preload", None)
        if preload is not None:
            compiled.append(preload(arguments))
    return any(compiled)


def _fork(control: socket.socket, request: ForkRequest, fds: Sequence[int]) -> None:
    """Fork one process, and let it go on when the one who asks knows it."""
    told_read, told_write = os.pipe()
    go_read, go_write = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            os.close(told_read)
            os.close(go_write)
            _fork_orphan(told_write, go_read, control, request, fds)
        os.close(told_write)
        told_write = -1
        told = os.read(told_read, _PID_BYTES)
        os.waitpid(between, 0)  # from here on the child has its new parent
        if not told:
            _tell(control, number=request.number, error="it could not be forked")
            return
        _tell(control, number=request.number, pid=int(told))
        os.write(go_write, _GO)
    except OSError as error:
        _tell(control, number=request.number, error=error.strerror or type(error).__name__)
    finally:
        for fd in (told_read, told_write, go_read, go_write):
            if fd >= 0:
                os.close(fd)


def _fork_orphan(
    told: int, go: int, control: socket.socket, request: ForkRequest, fds: Sequence[int]
) -> NoReturn:
    """Be the process in between: fork, tell the child's id, and end."""
    try:
        child = os.fork()
        if child:
            os.write(told, str(child).encode())
            os._exit(0)
    except OSError:
        os._exit(1)
    os.close(told)
    may_go = os.read(go, 1) == _GO
    os.close(go)
    if not may_go:
        os._exit(1)  # the template died, and nobody knows of this process
    control.close()
    _run(request, fds)


def _run(request: ForkRequest, fds: Sequence[int]) -> NoReturn:
    """Run the program in this process, which was just forked."""
    status: object = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        begin_fork(parent=request.parent)
        # A session of its own, as every process of a supervisor has.
        os.setsid()
        place_fds(fds, request.fds)
        os.environ.update(request.environment)
        sys.argv = [request.module, *request.arguments]
        rename_process(request.name, " ".join([request.name, *sys.argv]))
        status = sys.modules[request.module].main(list(request.arguments))
    except SystemExit as end:
        status = end.code
    except BaseException:  # the edge of the process
        traceback.print_exc()
    end_process(status)


def _tell(control: socket.socket, **message: object) -> None:
    control.send(json.dumps(message).encode())


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
