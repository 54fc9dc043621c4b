"""HTTP servers that share an address."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.wire.http import HttpServer


def app(name: str) -> Starlette:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse(name)

    return Starlette(routes=[Route("/", answer)])


async def test_a_second_server_takes_over_the_address() -> None:
    first = HttpServer(app("first"), "127.0.0.1:0")
    await first.start()
    url = f"http://127.0.0.1:{first.port}/"
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).text == "first"
    second = HttpServer(app("second"), f"127.0.0.1:{first.port}")
    await second.start()
    await first.stop()
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).text == "second"
    await second.stop()
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as client:
            await client.get(url)


async def test_a_server_that_never_started_frees_its_address() -> None:
    idle = HttpServer(app("idle"), "[::1]:0")
    assert idle.port > 0
    await idle.stop()
