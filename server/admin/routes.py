"""HTTP for operators: health, the state of tasks, and rollback.

`/health` and `/ready` are open, as probes need them; everything under `/api/v1` wants the bearer
token where one is configured. Every error is `{"reason": ..., "message": ...}`; nothing of an
unexpected one is told. Metrics are another application, for another port: `create_metrics_app`.
"""

import hmac
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from typing import Annotated, Final, cast

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from monitoring.health import Health
from monitoring.logs import get_logger
from protos.wire import MAX_LISTED_ROUNDS, TASK_NAME
from server import errors
from server.admin.answers import (
    AdminBackend,
    ErrorAnswer,
    ModelInfo,
    PrivacyStatus,
    ReplayedRound,
    RoundSummary,
    TaskStatus,
    TaskSummary,
)
from server.errors import ServiceError
from server.wire.probes import health_routes

# What an operator's client should do; a class missing here is answered by its base's status.
HTTP_STATUS: Final[dict[type[ServiceError], HTTPStatus]] = {
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.WrongState: HTTPStatus.CONFLICT,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.AccessDenied: HTTPStatus.FORBIDDEN,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    ServiceError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_TaskName = Annotated[str, Path(pattern=f"^{TASK_NAME.pattern}$")]
_Version = Annotated[int, Path(ge=1, lt=2**63)]
_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED_ROUNDS)]

_ERROR_ANSWERS: Final[dict[int | str, dict[str, object]]] = {
    "4XX": {"model": ErrorAnswer},
    "5XX": {"model": ErrorAnswer},
}

_log = get_logger(__name__)


def create_admin_app(
    backend: AdminBackend,
    health: Callable[[], Awaitable[Health]],
    *,
    token: str | None,
) -> FastAPI:
    """Return the ASGI application of the admin port.

    Args:
        backend: answers the questions.
        health: runs the checks behind `/ready`.
        token: what `Authorization: Bearer` must hold under `/api/v1`; None: nothing is asked.

    Raises:
        ValueError: if the token is empty.
    """
    if token is not None and not token:
        msg = "token='' would let everybody in"
        raise ValueError(msg)
    # The interactive documentation pages load scripts from elsewhere: only the schema is served.
    app = FastAPI(
        title="fedagg admin API", openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None
    )
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_unexpected)
    app.state.backend, app.state.health = backend, health
    app.state.authorization = None if token is None else f"Bearer {token}".encode()
    app.router.routes.extend(admin_routes())
    return app


@cache
def admin_routes() -> tuple[BaseRoute, ...]:
    """Make the routes, the same for every application: 9 MB of schemas, in a tenth of a second."""
    return (*health_routes(), *_task_router().routes)


async def _backend_of(request: Request) -> AdminBackend:
    return cast("AdminBackend", request.app.state.backend)


async def _authorize(request: Request) -> None:
    expected: bytes | None = request.app.state.authorization
    given = request.headers.get("authorization", "").encode()
    if expected is not None and not hmac.compare_digest(given, expected):
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            detail="a bearer token is required",
            headers={"www-authenticate": "Bearer"},
        )


_Backend = Annotated[AdminBackend, Depends(_backend_of)]


def _task_router() -> APIRouter:
    router = APIRouter(
        prefix="/api/v1/tasks",
        tags=["tasks"],
        dependencies=[Depends(_authorize)],
        responses=_ERROR_ANSWERS,
    )

    @router.get("")
    async def list_tasks(backend: _Backend) -> list[TaskSummary]:
        """List all tasks."""
        return await backend.list_tasks()

    @router.get("/{task}")
    async def task_status(backend: _Backend, task: _TaskName) -> TaskStatus:
        """Show a task's phase, round and current model."""
        return await backend.task_status(task)

    @router.get("/{task}/privacy")
    async def privacy(backend: _Backend, task: _TaskName) -> PrivacyStatus:
        """Show what a task has spent of its privacy budget; scoring may take a second."""
        return await backend.privacy(task)

    _add_rounds(router)
    _add_models(router)
    return router


def _add_rounds(router: APIRouter) -> None:
    @router.get("/{task}/rounds")
    async def finished_rounds(
        backend: _Backend, task: _TaskName, limit: _Limit = 50
    ) -> list[RoundSummary]:
        """List finished rounds, newest first."""
        return await backend.finished_rounds(task, limit=limit)

    @router.post("/{task}/rounds/{round_number}/replay")
    async def replay(backend: _Backend, task: _TaskName, round_number: _Version) -> ReplayedRound:
        """Build a round's version again from what was kept; may take as long as the round's."""
        found = await backend.replay(task, round_number)
        _log.info("round_replayed", task=task, round=round_number, is_same=found.is_same)
        return found


def _add_models(router: APIRouter) -> None:
    @router.get("/{task}/models")
    async def list_models(backend: _Backend, task: _TaskName) -> list[ModelInfo]:
        """List published model versions, newest first."""
        return await backend.list_models(task)

    @router.get("/{task}/models/{version}")
    async def model(backend: _Backend, task: _TaskName, version: _Version) -> ModelInfo:
        """Show one published model version."""
        return await backend.model(task, version)

    @router.get("/{task}/models/{version}/file", response_class=StreamingResponse)
    async def model_file(
        backend: _Backend, task: _TaskName, version: _Version
    ) -> StreamingResponse:
        """Send the safetensors file of one published model version."""
        size, parts = await backend.model_file(task, version)
        headers = {"content-length": str(size)}
        return StreamingResponse(parts, media_type="application/octet-stream", headers=headers)

    @router.post("/{task}/models/{version}/rollback")
    async def rollback(backend: _Backend, task: _TaskName, version: _Version) -> ModelInfo:
        """Make an earlier version current; repeating it changes nothing."""
        restored = await backend.rollback(task, version)
        _log.warning("model_rolled_back", task=task, model_version=version)
        return restored


def _error(status: int, reason: str, message: str) -> JSONResponse:
    answer = ErrorAnswer(reason=reason, message=message)
    return JSONResponse(answer.model_dump(), status_code=status)


def _answer_service_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    status = next(HTTP_STATUS[base] for base in type(error).__mro__ if base in HTTP_STATUS)
    answer = _error(status, error.reason, error.message)
    if error.retry_after_ms:
        # The header counts whole seconds.
        answer.headers["retry-after"] = str(-(-error.retry_after_ms // 1_000))
    return answer


def _answer_http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    reason = HTTPStatus(error.status_code).name
    answer = _error(error.status_code, reason, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _answer_invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    places = (".".join(str(part) for part in fault["loc"]) for fault in error.errors())
    faults = (fault["msg"] for fault in error.errors())
    message = "; ".join(f"{place}: {text}" for place, text in zip(places, faults, strict=True))
    return _error(HTTPStatus.BAD_REQUEST, errors.MalformedRequest.reason, message)


def _answer_unexpected(request: Request, error: Exception) -> Response:
    _log.error("admin_request_failed", path=request.url.path, error=type(error).__name__)
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "internal error")
