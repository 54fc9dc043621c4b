"""A scripted coordinator on a loopback port."""

from collections.abc import AsyncIterator

import grpc
import pytest

from protos.fedagg.v1 import federation_pb2_grpc
from tests.simulation.scripted_server import ScriptedServer


@pytest.fixture
async def scripted_server() -> AsyncIterator[tuple[ScriptedServer, str]]:
    """The server and the address it listens on."""
    servicer = ScriptedServer()
    server = grpc.aio.server()
    federation_pb2_grpc.add_FederationServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)
