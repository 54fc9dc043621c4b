"""Free ports of the loopback interface, kept for the processes of one demonstration."""

import socket
from types import TracebackType
from typing import Final, Self

_HOST: Final = "127.0.0.1"


class ReservedPorts:
    """Holds ports that nobody else can take while the coordinators listen on them.

    A bound socket with SO_REUSEPORT that does not listen gets no connections, and lets processes
    of the same user that set the option bind the same port.
    """

    def __init__(self, count: int) -> None:
        self._sockets = [self._reserve() for _ in range(count)]

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port of each."""
        return tuple(f"{_HOST}:{one.getsockname()[1]}" for one in self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in self._sockets:
            one.close()

    @staticmethod
    def _reserve() -> socket.socket:
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((_HOST, 0))
        return reserved
