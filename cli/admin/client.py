"""The admin API, called by a person."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Annotated, Final, Self, TypeVar

import httpx
import typer
from pydantic import TypeAdapter, ValidationError

from cli.exit_codes import CliError, ExitCode
from server.admin.answers import (
    ErrorAnswer,
    ModelInfo,
    PrivacyStatus,
    ReplayedRound,
    RoundSummary,
    TaskStatus,
    TaskSummary,
)

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TOKEN_ENV: Final = "FEDAGG_ADMIN_TOKEN"  # noqa: S105  # its name

UrlOption = Annotated[
    str, typer.Option("--url", envvar="FEDAGG_ADMIN_URL", help="Address of the admin API.")
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar=TOKEN_ENV, help="Bearer token; better in the environment."),
]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Task; not needed where there is only one.")
]

_AnswerT = TypeVar("_AnswerT")

_TIMEOUT_S: Final = 10.0
_PREFIX: Final = "/api/v1/tasks"
_TASKS: Final = TypeAdapter(list[TaskSummary])
_ROUNDS: Final = TypeAdapter(list[RoundSummary])
_MODELS: Final = TypeAdapter(list[ModelInfo])


class AdminClient:
    """Typed calls to one server. A context.

    Raises:
        CliError: from every call, if the server cannot be reached, refuses, or answers something
            else than the admin API does.
    """

    def __init__(
        self, url: str, token: str | None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # Reached directly, whatever proxy the environment names: the token is for the server only.
        try:
            self._http = httpx.Client(
                base_url=url,
                headers=headers,
                timeout=_TIMEOUT_S,
                trust_env=False,
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            msg = f"--url={url} or --token cannot be used: {error}"
            raise CliError(msg, exit_code=ExitCode.USAGE) from error
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def tasks(self) -> Sequence[TaskSummary]:
        """Return all tasks."""
        return self._parsed(_TASKS, self._call("GET", _PREFIX))

    def task(self, name: str) -> TaskStatus:
        """Return one task and its latest round."""
        return self._parsed(TypeAdapter(TaskStatus), self._call("GET", f"{_PREFIX}/{name}"))

    def privacy(self, task: str) -> PrivacyStatus:
        """Return what a task has spent of its privacy budget."""
        answer = self._call("GET", f"{_PREFIX}/{task}/privacy")
        return self._parsed(TypeAdapter(PrivacyStatus), answer)

    def rounds(self, task: str, *, limit: int) -> Sequence[RoundSummary]:
        """Return finished rounds, newest first."""
        return self._parsed(_ROUNDS, self._call("GET", f"{_PREFIX}/{task}/rounds?limit={limit}"))

    def replay(self, task: str, round_number: int) -> ReplayedRound:
        """Build a finished round's version again; may take as long as the round's aggregation."""
        answer = self._call("POST", f"{_PREFIX}/{task}/rounds/{round_number}/replay", timeout=None)
        return self._parsed(TypeAdapter(ReplayedRound), answer)

    def models(self, task: str) -> Sequence[ModelInfo]:
        """Return published versions, newest first."""
        return self._parsed(_MODELS, self._call("GET", f"{_PREFIX}/{task}/models"))

    def model(self, task: str, version: int) -> ModelInfo:
        """Return one version."""
        answer = self._call("GET", f"{_PREFIX}/{task}/models/{version}")
        return self._parsed(TypeAdapter(ModelInfo), answer)

    def model_file(self, task: str, version: int) -> Iterator[bytes]:
        """Read the file of one version, part by part, as it comes; the caller checks its hash."""
        path = f"{_PREFIX}/{task}/models/{version}/file"
        try:
            with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    answer.read()
                    raise CliError(_refusal(answer), exit_code=ExitCode.REFUSED)
                yield from answer.iter_bytes()
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable(error) from error

    def rollback(self, task: str, version: int) -> ModelInfo:
        """Make an earlier version current."""
        answer = self._call("POST", f"{_PREFIX}/{task}/models/{version}/rollback")
        return self._parsed(TypeAdapter(ModelInfo), answer)

    def only_task(self, given: str | None) -> str:
        """Return the task that was given, or the only one there is."""
        if given is not None:
            return given
        names = [summary.task for summary in self.tasks()]
        if len(names) != 1:
            msg = f"name a task with --task; there are {', '.join(names) or 'none'}"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        return names[0]

    def _call(self, method: str, path: str, *, timeout: float | None = _TIMEOUT_S) -> bytes:
        try:
            answer = self._http.request(method, path, timeout=timeout)
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable(error) from error
        if answer.is_success:
            return answer.content
        raise CliError(_refusal(answer), exit_code=ExitCode.REFUSED)

    def _unreachable(self, error: Exception) -> CliError:
        msg = f"{self._url} cannot be reached: {error}"
        return CliError(msg, exit_code=ExitCode.UNREACHABLE)

    def _parsed(self, adapter: TypeAdapter[_AnswerT], content: bytes) -> _AnswerT:
        try:
            return adapter.validate_json(content)
        except ValidationError as error:
            msg = f"{self._url} does not answer as a fedagg server does"
            raise CliError(msg) from error


def _refusal(answer: httpx.Response) -> str:
    try:
        refused = ErrorAnswer.model_validate_json(answer.content)
    except ValidationError:
        return f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}"
    hint = ""
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        hint = f": set {TOKEN_ENV} or --token"
    return f"{refused.reason}: {refused.message}{hint}"
