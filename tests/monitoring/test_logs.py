"""Logs: the two forms, and what never reaches a line."""

import enum
import io
import json
import logging
from collections.abc import Iterator

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from monitoring.logs import (
    MAX_LIST_ITEMS,
    MAX_STRING_CHARS,
    LogFieldError,
    LogFormat,
    configure_logging,
    get_logger,
    strict_fields,
)
from tests.looped import looped

VECTOR = np.array([0.123456, 0.654321], dtype=np.float32)
# Passed through this name, so that a forbidden value is a matter of run time, as it is in use.
FORBIDDEN: list[tuple[str, object]] = [
    ("update", VECTOR),
    ("update", VECTOR.tobytes()),
    ("update", [0.123456, 0.654321]),
    ("update", {"layer": VECTOR}),
    ("update", VECTOR[0]),
    ("update", list(range(MAX_LIST_ITEMS + 1))),
    ("enrollment_token", "abc0.123456"),
    ("private_key", "0.123456"),
    ("level", "0.123456"),
    ("event", "0.123456"),
]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    strict_fields(False)


def logged(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert isinstance(entry, dict)
    return entry


def test_json_line_holds_event_and_fields() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    get_logger("server.driver").info(
        "phase_entered", task="digits", round=3, loss=0.25, late=False, reason=None, left=["a", "b"]
    )
    entry = logged(stream)
    assert str(entry.pop("at")).endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "server.driver",
        "event": "phase_entered",
        "task": "digits",
        "round": 3,
        "loss": 0.25,
        "late": False,
        "reason": None,
        "left": ["a", "b"],
    }


def test_a_stream_that_is_no_terminal_gets_json() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    get_logger("x").info("started")
    assert logged(stream)["event"] == "started"


def test_a_terminal_gets_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure_logging(stream=stream)
    get_logger("x").warning("update_refused", round=3, reason="two words")
    assert stream.getvalue()[13:] == (
        'warning update_refused logger=x round=3 reason="two words"\n'
    )


@looped("log_format", ["json", "text"])
@looped("hostile", ["a\nb", "\x1b[2J", "\u2028", "\u202e", "a\rb"])
def test_a_value_cannot_break_the_line(log_format: LogFormat, hostile: str) -> None:
    stream = io.StringIO()
    configure_logging(log_format=log_format, stream=stream)
    get_logger("x").info("check_in", app_version=hostile)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert line.isascii()


@looped("name, value", FORBIDDEN)
def test_arrays_bytes_and_secrets_are_replaced(name: str, value: object) -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    fields: dict[str, object] = {name: value, "round": 3}
    get_logger("x").info("update_refused", **fields)  # type: ignore[arg-type]  # that is the test
    entry = logged(stream)
    assert entry["round"] == 3
    assert "0.12" not in stream.getvalue()
    assert str(VECTOR.tobytes()[:2])[2:-1] not in stream.getvalue()
    assert entry["level"] in {"info", "<not logged: is reserved or named like a secret>"}


@looped("name, value", FORBIDDEN)
def test_arrays_bytes_and_secrets_raise_where_fields_are_strict(name: str, value: object) -> None:
    strict_fields(True)
    fields: dict[str, object] = {name: value}
    with pytest.raises(LogFieldError, match=name):
        get_logger("x").error("update_refused", **fields)  # type: ignore[arg-type]  # as above


def test_long_strings_are_cut() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    get_logger("x").info("e", detail="x" * (MAX_STRING_CHARS + 1))
    detail = str(logged(stream)["detail"])
    assert detail == "x" * MAX_STRING_CHARS + f"... ({MAX_STRING_CHARS + 1} characters)"


def test_not_a_number_is_still_json() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    get_logger("x").info("e", loss=float("nan"), bound=float("-inf"))
    entry = logged(stream)
    assert (entry["loss"], entry["bound"]) == ("nan", "-inf")


def test_a_string_enum_is_its_value() -> None:
    class Phase(enum.StrEnum):
        OPEN = "open"

    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    get_logger("x").info("e", phase=Phase.OPEN)
    assert logged(stream)["phase"] == "open"


def test_other_libraries_keep_their_messages() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    logging.getLogger("uvicorn").info("listening on %s", "127.0.0.1")
    entry = logged(stream)
    assert (entry["event"], entry["message"]) == ("log", "listening on 127.0.0.1")


def test_levels_below_are_not_written_nor_looked_at() -> None:
    strict_fields(True)
    stream = io.StringIO()
    configure_logging(level="info", stream=stream)
    get_logger("x").debug("e", update=VECTOR)  # type: ignore[arg-type]  # never looked at
    assert not stream.getvalue()


def test_exception_logs_the_stack() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    try:
        raise KeyError("missing")
    except KeyError:
        get_logger("x").exception("driver_failed", round=1)
    entry = logged(stream)
    assert entry["level"] == "error"
    assert "KeyError: 'missing'" in str(entry["exception"])


def test_a_line_names_the_span_it_was_logged_in() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    context = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        get_logger("x").info("e")
    entry = logged(stream)
    assert (entry["trace_id"], entry["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
