"""HTTP beside gRPC, on the same event loop: the admin API and the metrics page."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from server.config.formats import split_address

BACKLOG: Final = 128


class HttpServer:
    """One ASGI application on one address.

    Several worker processes listen on the same address (SO_REUSEPORT); the kernel spreads the
    connections and forgets the sockets of a process that died.

    Args:
        app: the application.
        address: host:port; port 0 picks a free one.
    """

    def __init__(self, app: ASGIApp, address: str) -> None:
        self._socket = _listen(address)
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off"
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port bound."""
        port: int = self._socket.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve in the background, on the socket that was bound when it was made."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which has more to stop than this."""
        yield


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
