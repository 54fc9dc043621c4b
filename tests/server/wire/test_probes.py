"""What a process tells whoever watches it."""

import asyncio
import socket

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from monitoring.health import Check, Health
from monitoring.metrics import Metrics
from server.wire.probes import create_metrics_app, health_routes


def watched(**checks: Check) -> FastAPI:
    """Return an application whose checks say so."""

    async def health() -> Health:
        return Health(checks=checks)

    app = FastAPI()
    app.state.health = health
    app.router.routes.extend(health_routes())
    return app


async def get(app: ASGIApp, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://probes") as client:
        return await client.get(path)


async def test_alive_even_where_checks_fail() -> None:
    response = await get(watched(store=Check(ok=False)), "/health")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_ready_tells_the_checks() -> None:
    app = watched(
        store=Check(ok=True, detail="valkey 9"),
        traces=Check(ok=False, detail="ConnectionError", critical=False),
    )
    response = await get(app, "/ready")
    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "checks": {
            "store": {"ok": True, "detail": "valkey 9", "critical": True},
            "traces": {"ok": False, "detail": "ConnectionError", "critical": False},
        },
    }


async def test_not_ready_is_503_with_details() -> None:
    response = await get(watched(store=Check(ok=False, detail="no answer within 2 s")), "/ready")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["checks"]["store"]["detail"] == "no answer within 2 s"


@pytest.mark.slow
async def test_over_a_real_socket() -> None:
    registry = CollectorRegistry()
    Metrics.declare(registry).leader.labels(task="digits").set(1)
    answers: list[tuple[int, str, str]] = []
    apps: list[tuple[ASGIApp, str]] = [
        (watched(store=Check(ok=True)), "/ready"),
        (create_metrics_app(registry), "/metrics"),
    ]
    for app, path in apps:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        # The listener's queue holds the connection until the server takes it.
        async with httpx.AsyncClient() as client:
            response = await client.get(f"http://127.0.0.1:{port}{path}")
        answers.append((response.status_code, response.headers["content-type"], response.text))
        server.should_exit = True
        await serving
        listener.close()
    assert answers[0] == (200, "application/json", answers[0][2])
    assert answers[1][:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'federated_leader{task="digits"} 1.0' in answers[1][2]


async def test_the_metrics_port_serves_metrics_only() -> None:
    app = create_metrics_app(CollectorRegistry())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/api/v1/tasks")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
