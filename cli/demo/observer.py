"""Follows a task from outside: the admin API over HTTP, the models over gRPC."""

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import TypeAdapter

from cli.demo.report import RoundReport
from cli.demo.settings import TASK, DemoAddresses
from cli.exit_codes import CliError, ExitCode
from client import ClientConfig, FederationTransport, RetryPolicy
from client.transport.messages import ModelRequest
from protos.wire import MAX_LISTED_ROUNDS
from server.admin.answers import ModelInfo, PrivacyStatus, RoundSummary, TaskStatus
from simulation.data.datasets import Dataset
from simulation.models import TestScore, evaluate
from updates.vectors import decode_model

_OBSERVER_ID: Final = "fedagg-demo"
_RETRY_S: Final = 0.2
_TIMEOUT_S: Final = 10.0
_MODEL_RETRY: Final = RetryPolicy(
    initial_s=0.1, max_s=1.0, max_attempts=1_000_000, total_s=86_400.0
)
_ROUNDS: Final = TypeAdapter(list[RoundSummary])
_MODELS: Final = TypeAdapter(list[ModelInfo])


class TaskObserver:
    """Reads the task's state and scores its models on the held-out data.

    A context. Every call is repeated while no coordinator answers; whoever makes it ends it.
    """

    def __init__(self, addresses: DemoAddresses, data: Dataset) -> None:
        # Reached directly, whatever proxy the environment names.
        self._http = httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False)
        self._task_url = f"http://{addresses.http}/api/v1/tasks/{TASK}"
        self._transport = FederationTransport(
            ClientConfig(
                servers=(addresses.grpc,),
                task=TASK,
                device_id=_OBSERVER_ID,
                insecure=True,
                retry=_MODEL_RETRY,
            )
        )
        self._data = data
        self._scores: dict[int, TestScore] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()
        await self._transport.close()

    async def status(self) -> TaskStatus:
        """Return the task and its latest round."""
        return TaskStatus.model_validate_json(await self._get(""))

    async def privacy(self) -> PrivacyStatus:
        """Return the task's privacy budget and what is spent of it."""
        return PrivacyStatus.model_validate_json(await self._get("/privacy"))

    async def models(self) -> Sequence[ModelInfo]:
        """Return every model version."""
        return _MODELS.validate_json(await self._get("/models"))

    async def finished_rounds(self, after: int) -> list[RoundReport]:
        """Report the finished rounds beyond number `after`, oldest first."""
        found = _ROUNDS.validate_json(await self._get(f"/rounds?limit={MAX_LISTED_ROUNDS}"))
        return [
            await self._report(summary) for summary in reversed(found) if summary.number > after
        ]

    async def score(self, version: int) -> TestScore:
        """Evaluate a model version on the held-out data."""
        if version not in self._scores:
            info = ModelInfo.model_validate_json(await self._get(f"/models/{version}"))
            file = await self._transport.fetch_model(
                ModelRequest(
                    task=TASK,
                    device_id=_OBSERVER_ID,
                    model_version=version,
                    sha256=info.sha256,
                    total_bytes=info.size_bytes,
                )
            )
            weights, _ = decode_model(file)
            self._scores[version] = evaluate(weights, self._data.x_test, self._data.y_test)
        return self._scores[version]

    async def _report(self, summary: RoundSummary) -> RoundReport:
        score = await self.score(summary.model_version or summary.base_version)
        return RoundReport(
            round=summary.number,
            decision=summary.decision,
            reason=summary.reason,
            accuracy=score.accuracy,
            loss=score.loss,
            accepted=summary.accepted,
            rejected=summary.rejected,
            excluded=summary.excluded,
            duration_s=(summary.finished_at_ms - summary.started_at_ms) / 1000,
            bytes_up=summary.bytes_up,
        )

    async def _get(self, path: str) -> bytes:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.get(self._task_url + path)
                if answer.is_success:
                    return answer.content
                if not answer.is_server_error:
                    msg = f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"
                    raise CliError(msg, exit_code=ExitCode.REFUSED)
            await asyncio.sleep(_RETRY_S)
