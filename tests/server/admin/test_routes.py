"""The admin API: answers, refusals, the token, and what an error tells."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from monitoring.health import Check, Health
from server import errors
from server.admin.answers import (
    AdminBackend,
    ModelInfo,
    PrivacyStatus,
    ReplayedRound,
    RoundSummary,
    TaskStatus,
    TaskSummary,
)
from server.admin.routes import HTTP_STATUS, create_admin_app

TOKEN = "correct horse"  # noqa: S105  # of this test only
BEARER = {"authorization": f"Bearer {TOKEN}"}


def model_info(version: int) -> ModelInfo:
    return ModelInfo(
        version=version,
        parent=version - 1 or None,
        round_number=version - 1 or None,
        sha256=f"{version:064x}",
        size_bytes=100,
        dim=20,
        created_at_ms=1_000 * version,
        metrics={"accuracy": 0.5},
    )


def round_summary(number: int) -> RoundSummary:
    return RoundSummary(
        number=number,
        decision="published",
        reason="",
        base_version=number,
        model_version=number + 1,
        cohort_size=10,
        accepted=8,
        rejected=1,
        excluded=0,
        started_at_ms=1_000 * number,
        finished_at_ms=1_000 * number + 500,
        bytes_up=800,
        traceparent="",
        metrics={},
    )


PRIVACY = PrivacyStatus(
    task="digits",
    noise="central",
    mechanism="gaussian",
    sampling="none",
    noise_multiplier=2.0,
    clipping_norm=0.5,
    charge="{}",
    accountant="pld",
    delta=1e-5,
    epsilon_budget=1.0,
    epsilon_spent=0.5,
    epsilon_by_accountant={"pld": 0.5, "rdp": None},
    rounds_committed=3,
    rounds_reserved=1,
    rounds_remaining=2,
    uncharged_versions=0,
    budget_exhausted=False,
    max_participations=None,
    participations={1: 5, 2: 1},
)


def replayed_round(number: int) -> ReplayedRound:
    return ReplayedRound(
        round_number=number,
        model_version=number + 1,
        base_version=number,
        contributions=4,
        sha256="ab" * 32,
        rebuilt_sha256="ab" * 32,
        state_sha256="cd" * 32,
        rebuilt_state_sha256="cd" * 32,
        is_same=True,
    )


class MemoryBackend:
    """One task, "digits", with three versions, held in memory."""

    def __init__(self) -> None:
        self.current = 3
        self.fail_with: Exception | None = None

    async def list_tasks(self) -> list[TaskSummary]:
        return [TaskSummary(**(await self.task_status("digits")).model_dump(exclude=_STATUS_ONLY))]

    async def task_status(self, task: str) -> TaskStatus:
        self._check(task)
        return TaskStatus(
            task=task,
            phase="collecting",
            published_rounds=2,
            num_rounds=5,
            model_version=self.current,
            round_number=3,
            cohort_size=10,
            accepted=4,
            waiting=7,
            model=model_info(self.current),
        )

    async def privacy(self, task: str) -> PrivacyStatus:
        self._check(task)
        return PRIVACY

    async def finished_rounds(self, task: str, *, limit: int) -> list[RoundSummary]:
        self._check(task)
        return [round_summary(2), round_summary(1)][:limit]

    async def list_models(self, task: str) -> list[ModelInfo]:
        self._check(task)
        return [model_info(version) for version in (3, 2, 1)]

    async def model(self, task: str, version: int) -> ModelInfo:
        self._check(task)
        if version > 3:
            msg = f"version {version} of {task} was never published"
            raise errors.UnknownModelVersion(msg)
        return model_info(version)

    async def model_file(self, task: str, version: int) -> tuple[int, AsyncIterator[bytes]]:
        await self.model(task, version)

        async def parts() -> AsyncIterator[bytes]:
            for part in (b"model ", b"file"):
                yield part

        return 10, parts()

    async def replay(self, task: str, round_number: int) -> ReplayedRound:
        self._check(task)
        if round_number > 2:
            msg = f"round {round_number} of {task} published no version"
            raise errors.UnknownRound(msg)
        return replayed_round(round_number)

    async def rollback(self, task: str, version: int) -> ModelInfo:
        found = await self.model(task, version)
        self.current = version
        return found

    def _check(self, task: str) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        if task != "digits":
            msg = f"no task {task}"
            raise errors.UnknownTask(msg)


_STATUS_ONLY = set(TaskStatus.model_fields) - set(TaskSummary.model_fields)


class Service:
    """The application under test with what it stands on."""

    def __init__(self, token: str | None = TOKEN) -> None:
        self.backend = MemoryBackend()
        backend: AdminBackend = self.backend
        self.health = Health(checks={"store": Check(ok=True)})
        self.app = create_admin_app(backend, self._health, token=token)

    async def _health(self) -> Health:
        return self.health


@asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # As a real server does, answer first and let the exception out afterwards.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


@pytest.fixture
def service() -> Service:
    return Service()


async def get(service: Service, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async with calling(service.app) as client:
        return await client.get(path, headers=BEARER if headers is None else headers)


async def post(service: Service, path: str) -> httpx.Response:
    async with calling(service.app) as client:
        return await client.post(path, headers=BEARER)


async def test_tasks_are_listed(service: Service) -> None:
    assert (await get(service, "/api/v1/tasks")).json() == [
        {
            "task": "digits",
            "phase": "collecting",
            "published_rounds": 2,
            "num_rounds": 5,
            "model_version": 3,
            "budget_exhausted": False,
        }
    ]


async def test_a_tasks_privacy_is_told(service: Service) -> None:
    found = (await get(service, "/api/v1/tasks/digits/privacy")).json()
    assert PrivacyStatus.model_validate(found) == PRIVACY
    assert found["participations"] == {"1": 5, "2": 1}
    assert (await get(service, "/api/v1/tasks/other/privacy")).status_code == 404
    assert (await get(service, "/api/v1/tasks/digits/privacy", headers={})).status_code == 401


async def test_a_task_tells_its_round_and_model(service: Service) -> None:
    found = (await get(service, "/api/v1/tasks/digits")).json()
    assert (found["phase"], found["round_number"], found["published_rounds"]) == (
        "collecting",
        3,
        2,
    )
    assert (found["cohort_size"], found["accepted"], found["waiting"]) == (10, 4, 7)
    assert found["model"] == model_info(3).model_dump()


async def test_finished_rounds_come_newest_first_up_to_the_limit(service: Service) -> None:
    found = (await get(service, "/api/v1/tasks/digits/rounds")).json()
    assert [entry["number"] for entry in found] == [2, 1]
    assert found[0] == round_summary(2).model_dump()
    limited = (await get(service, "/api/v1/tasks/digits/rounds?limit=1")).json()
    assert [entry["number"] for entry in limited] == [2]


async def test_models_are_listed_and_shown(service: Service) -> None:
    found = (await get(service, "/api/v1/tasks/digits/models")).json()
    assert [entry["version"] for entry in found] == [3, 2, 1]
    one = (await get(service, "/api/v1/tasks/digits/models/2")).json()
    assert one == model_info(2).model_dump()


async def test_the_file_of_a_version_is_sent_to_those_who_have_the_token(service: Service) -> None:
    path = "/api/v1/tasks/digits/models/2/file"
    found = await get(service, path)
    assert (found.status_code, found.content) == (200, b"model file")
    assert found.headers["content-length"] == "10"
    assert found.headers["content-type"] == "application/octet-stream"
    assert (await get(service, path, headers={})).status_code == 401
    assert (await get(service, "/api/v1/tasks/digits/models/9/file")).status_code == 404


async def test_rollback_makes_an_earlier_version_current(service: Service) -> None:
    for _ in range(2):
        response = await post(service, "/api/v1/tasks/digits/models/2/rollback")
        assert (response.status_code, response.json()["version"]) == (200, 2)
    assert (await get(service, "/api/v1/tasks/digits")).json()["model_version"] == 2


async def test_rollback_wants_a_post(service: Service) -> None:
    response = await get(service, "/api/v1/tasks/digits/models/2/rollback")
    assert response.status_code == 405
    assert response.json()["reason"] == "METHOD_NOT_ALLOWED"
    assert service.backend.current == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/v1/tasks/words", "UNKNOWN_TASK"),
        ("/api/v1/tasks/words/rounds", "UNKNOWN_TASK"),
        ("/api/v1/tasks/digits/models/9", "UNKNOWN_MODEL_VERSION"),
        ("/nowhere", "NOT_FOUND"),
        ("/metrics", "NOT_FOUND"),
        ("/docs", "NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_404(service: Service, path: str, reason: str) -> None:
    response = await get(service, path)
    assert response.status_code == 404
    assert response.json().keys() == {"reason", "message"}
    assert response.json()["reason"] == reason


async def test_rollback_to_an_unknown_version_is_404(service: Service) -> None:
    response = await post(service, "/api/v1/tasks/digits/models/9/rollback")
    assert response.status_code == 404
    assert response.json() == {
        "reason": "UNKNOWN_MODEL_VERSION",
        "message": "version 9 of digits was never published",
    }
    assert service.backend.current == 3


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/tasks/digits/models/0",
        "/api/v1/tasks/digits/models/x",
        f"/api/v1/tasks/digits/models/{2**63}",
        "/api/v1/tasks/digits/rounds?limit=0",
        "/api/v1/tasks/digits/rounds?limit=1001",
        "/api/v1/tasks/DIGITS",
        "/api/v1/tasks/di%0agits",
    ],
)
async def test_arguments_out_of_range_are_400(service: Service, path: str) -> None:
    response = await get(service, path)
    assert response.status_code == 400
    assert response.json()["reason"] == "MALFORMED_REQUEST"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": TOKEN},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Basic {TOKEN}"},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/tasks/words"])
async def test_without_the_token_nothing_is_told(
    service: Service, path: str, headers: dict[str, str]
) -> None:
    response = await get(service, path, headers)
    assert response.status_code == 401
    assert response.json() == {"reason": "UNAUTHORIZED", "message": "a bearer token is required"}
    assert response.headers["www-authenticate"] == "Bearer"


async def test_without_the_token_nothing_is_changed(service: Service) -> None:
    async with calling(service.app) as client:
        response = await client.post("/api/v1/tasks/digits/models/2/rollback")
    assert response.status_code == 401
    assert service.backend.current == 3


async def test_a_header_that_is_not_ascii_is_refused(service: Service) -> None:
    async with calling(service.app) as client:
        response = await client.get("/api/v1/tasks", headers=[(b"authorization", b"Bearer \xff")])
    assert response.status_code == 401


async def test_no_token_is_asked_where_none_is_configured() -> None:
    assert (await get(Service(token=None), "/api/v1/tasks", headers={})).status_code == 200


def test_an_empty_token_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="token"):
        Service(token="")


async def test_an_unexpected_error_tells_nothing(service: Service) -> None:
    service.backend.fail_with = RuntimeError("redis://user:password@host")
    response = await get(service, "/api/v1/tasks/digits")
    assert response.status_code == 500
    assert response.json() == {"reason": "INTERNAL_ERROR", "message": "internal error"}


async def test_unavailable_comes_with_a_hint(service: Service) -> None:
    service.backend.fail_with = errors.StoreUnavailable("no answer", retry_after_ms=1_001)
    response = await get(service, "/api/v1/tasks/digits")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json() == {"reason": "STORE_UNAVAILABLE", "message": "no answer"}


def leaves(root: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from leaves(child)


@pytest.mark.parametrize("kind", [kind for kind in leaves(errors.ServiceError) if kind.reason])
async def test_every_error_has_a_status_of_its_own_kind(
    service: Service, kind: type[errors.ServiceError]
) -> None:
    service.backend.fail_with = kind("why")
    response = await get(service, "/api/v1/tasks/digits")
    assert response.json() == {"reason": kind.reason, "message": "why"}
    assert response.status_code != HTTP_STATUS[errors.ServiceError]


async def test_the_schema_names_every_route(service: Service) -> None:
    schema = (await get(service, "/api/v1/openapi.json")).json()
    assert {"/health", "/ready", "/api/v1/tasks/{task}/models/{version}/rollback"} <= set(
        schema["paths"]
    )
    rounds = schema["paths"]["/api/v1/tasks/{task}/rounds"]["get"]
    assert rounds["responses"]["4XX"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ErrorAnswer"
    }
