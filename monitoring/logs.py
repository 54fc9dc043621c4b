"""Structured logs: an event name and fields, as JSON lines or, on a terminal, as text.

    log = get_logger(__name__)
    log.info("phase_entered", task="digits", round=3, phase="COLLECTING")

The standard library's logging does the work, so levels, handlers and the records of other
libraries behave as usual. A field is a number, a short string, or a list of these: arrays, bytes
and anything named like a secret never reach a log line, whatever the caller passed. Such a field
is replaced by a note; with `strict_fields(True)`, as tests run, it raises `LogFieldError`.
"""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from opentelemetry import trace

LogScalar = str | int | float | bool | None
LogValue = LogScalar | Sequence[str | int]
LogFormat = Literal["auto", "json", "text"]

MAX_STRING_CHARS: Final = 1_000
MAX_LIST_ITEMS: Final = 100

_RESERVED: Final = frozenset(
    {"at", "level", "logger", "event", "message", "exception", "trace_id", "span_id"}
)
_SECRET_PARTS: Final = ("token", "secret", "password", "credential", "private", "key_pem")
_FIELDS_ATTRIBUTE: Final = "fedagg_fields"
_LEVEL_WIDTH: Final = 7


class LogFieldError(TypeError):
    """A field must not be logged; only raised while fields are strict."""


class _Policy:
    """Whether a bad field raises; one for the process, as logging itself is."""

    strict = False


def strict_fields(strict: bool) -> None:  # reads as a switch
    """Choose whether a field that must not be logged raises (True) or is replaced (False)."""
    _Policy.strict = strict


class EventLogger:
    """Writes events of one module. Costs one comparison where the level is off."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: LogValue) -> None:
        """Log what only a developer wants to know."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: LogValue) -> None:
        """Log a decision or a change of state."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: LogValue) -> None:
        """Log what the process copes with but an operator should know."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: LogValue) -> None:
        """Log what an operator has to act on."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: LogValue) -> None:
        """Log an error with the stack of the exception being handled."""
        self._log(logging.ERROR, event, fields, with_stack=True)

    def _log(
        self, level: int, event: str, fields: Mapping[str, LogValue], *, with_stack: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            safe = {name: _safe(name, value) for name, value in fields.items()}
            self._logger.log(level, event, exc_info=with_stack, extra={_FIELDS_ATTRIBUTE: safe})


def get_logger(name: str) -> EventLogger:
    """Return the event logger of a module; `name` is usually `__name__`."""
    return EventLogger(logging.getLogger(name))


def configure_logging(
    *, level: str = "INFO", log_format: LogFormat = "auto", stream: TextIO | None = None
) -> logging.Handler:
    """Send all records of the process to one stream, instead of wherever they went before.

    Args:
        level: name of the lowest level that is written.
        log_format: "json" lines, "text" for a person, or "auto": text on a terminal.
        stream: where to; standard error by default.

    Returns:
        The handler now on the root logger.

    Raises:
        ValueError: if `level` is no level's name.
    """
    target = sys.stderr if stream is None else stream
    as_text = target.isatty() if log_format == "auto" else log_format == "text"
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for previous in root.handlers[:]:
        root.removeHandler(previous)
    root.addHandler(handler)
    return handler


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, in ASCII, on one line.

    Always: `at` (RFC 3339, UTC), `level`, `logger`, `event`. Then the fields. A record of another
    library has the event "log" and its text in `message`. `trace_id` and `span_id` name the span
    in which it was logged, `exception` is the stack.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one JSON object on one line, in ASCII."""
        return json.dumps(_entry(self, record))


class TextFormatter(logging.Formatter):
    """Time, level, event and `name=value` pairs; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record for a person: one line, and the stack below it where there is one."""
        entry = _entry(self, record)
        at, level, event = str(entry.pop("at")), str(entry.pop("level")), str(entry.pop("event"))
        exception = entry.pop("exception", None)
        pairs = " ".join(f"{name}={_text(value)}" for name, value in entry.items())
        line = f"{at[11:23]} {level:<{_LEVEL_WIDTH}} {_text(event)} {pairs}"
        return line if exception is None else f"{line}\n{exception}"


def _entry(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, LogValue]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    entry: dict[str, LogValue] = {
        "at": at.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    fields = getattr(record, _FIELDS_ATTRIBUTE, None)
    if fields is None:
        entry |= {"event": "log", "message": _shorten(record.getMessage())}
    else:
        entry |= {"event": record.msg, **fields}
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        entry |= {
            "trace_id": trace.format_trace_id(span.trace_id),
            "span_id": trace.format_span_id(span.span_id),
        }
    if record.exc_info:
        entry["exception"] = formatter.formatException(record.exc_info)
    return entry


def _safe(name: str, value: object) -> LogValue:
    if name in _RESERVED or any(part in name.lower() for part in _SECRET_PARTS):
        return _refuse(name, "is reserved or named like a secret")
    match value:
        case None | bool() | int():
            return value
        case float():
            # JSON has no NaN and no infinity.
            return float(value) if math.isfinite(value) else str(float(value))
        case str():
            return _shorten(str(value))
        case list() | tuple():
            return _safe_items(name, value)
        case _:
            return _refuse(name, f"has type {type(value).__name__}")


def _safe_items(name: str, items: list[object] | tuple[object, ...]) -> LogValue:
    if len(items) > MAX_LIST_ITEMS:
        return _refuse(name, f"has {len(items)} items")
    if not all(isinstance(item, str | int) for item in items):
        # Numbers with a fraction come in lists only where somebody logs a vector.
        return _refuse(name, "has items that are neither strings nor integers")
    return [item if isinstance(item, int) else _shorten(str(item)) for item in items]


def _refuse(name: str, why: str) -> str:
    if _Policy.strict:
        msg = f"field {name!r} {why} and must not be logged"
        raise LogFieldError(msg)
    return f"<not logged: {why}>"


def _shorten(text: str) -> str:
    if len(text) <= MAX_STRING_CHARS:
        return text
    return f"{text[:MAX_STRING_CHARS]}... ({len(text)} characters)"


def _text(value: LogValue) -> str:
    if isinstance(value, str) and value.isprintable() and value.isascii() and " " not in value:
        return value
    return json.dumps(value)
