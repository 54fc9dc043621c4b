"""A scripted coordinator on a loopback port."""

from collections.abc import AsyncIterator

import pytest

from tests.simulation.scripted_server import ScriptedServer, serve


@pytest.fixture
async def scripted_server() -> AsyncIterator[tuple[ScriptedServer, str]]:
    """The server and the address it listens on."""
    servicer = ScriptedServer()
    server, port = await serve(servicer)
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)
