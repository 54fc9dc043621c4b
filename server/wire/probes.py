"""What a process tells whoever watches it: its metrics, its health."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from monitoring.health import Health
from monitoring.metrics import CONTENT_TYPE, exposition


def create_metrics_app(registry: CollectorRegistry) -> Starlette:
    """Return the ASGI application of the metrics port: `/metrics` and nothing else."""

    # Not a coroutine, so that rendering happens on a thread and not on the event loop.
    def metrics(_: Request) -> Response:
        return Response(exposition(registry), headers={"content-type": CONTENT_TYPE})

    return Starlette(routes=[Route("/metrics", metrics)])


def health_routes() -> Sequence[BaseRoute]:
    """Return `/health` and `/ready`, for an application whose state has `health`: the checks."""
    router = APIRouter(tags=["health"])

    @router.get("/health")
    async def is_alive() -> dict[str, str]:
        """Answer as long as the process does: a failing check is no reason to kill it."""
        return {"status": "alive"}

    @router.get("/ready", responses={503: {"model": HealthAnswer}})
    async def is_ready(request: Request) -> JSONResponse:
        """Tell whether the process can serve, check by check; 503 where it cannot."""
        health: Callable[[], Awaitable[Health]] = request.app.state.health
        found = await health()
        answer = HealthAnswer(
            ready=found.is_ready,
            checks={
                name: CheckAnswer.model_validate(check) for name, check in found.checks.items()
            },
        )
        status = HTTPStatus.OK if found.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse(answer.model_dump(), status_code=status)

    return router.routes


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True, protected_namespaces=())


class CheckAnswer(_Answer):
    """One check of a process."""

    ok: bool
    detail: str
    critical: bool


class HealthAnswer(_Answer):
    """Whether the process can serve."""

    ready: bool
    checks: dict[str, CheckAnswer]
