"""Tracing: exported to a real OTLP receiver, off by default, and the traceparent helpers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from monitoring.tracing import (
    configure_tracing,
    context_from_metadata,
    context_from_traceparent,
    current_traceparent,
)
from tests.monitoring.otlp_receiver import Receiver, receiving

ROOT = Path(__file__).parents[2]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = TRACEPARENT[:-1] + "0"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.mark.slow
def test_shutdown_exports_what_is_buffered(receiver: Receiver) -> None:
    tracing = configure_tracing(service_name="coordinator", otlp_endpoint=receiver.endpoint)
    tracer = tracing.tracer("server.driver")
    with tracer.start_as_current_span("round", attributes={"round": 3}):
        traceparent = current_traceparent()
        with tracer.start_as_current_span("aggregate"):
            pass
    tracing.shutdown()
    outer, inner = receiver.spans["round"], receiver.spans["aggregate"]
    assert inner.trace_id == outer.trace_id
    assert inner.parent_span_id == outer.span_id
    assert traceparent[:-2] == f"00-{outer.trace_id.hex()}-{outer.span_id.hex()}-"
    # Bit 0 says sampled; bit 1 says that the trace id is random.
    assert int(traceparent[-2:], 16) & 1
    assert receiver.services == {"coordinator"}


def test_a_remote_parent_is_continued(receiver: Receiver) -> None:
    tracing = configure_tracing(
        service_name="coordinator", otlp_endpoint=receiver.endpoint, sample_ratio=0.0
    )
    tracer = tracing.tracer("server")
    for name, parent in (("wanted", TRACEPARENT), ("unwanted", NOT_SAMPLED)):
        metadata = (("user-agent", "x"), ("traceparent", parent))
        with tracer.start_as_current_span(name, context=context_from_metadata(metadata)):
            pass
    with tracer.start_as_current_span("new trace"):
        pass
    tracing.shutdown()
    # The caller's decision is followed; a ratio of 0 records no trace that starts here.
    assert set(receiver.spans) == {"wanted"}
    assert receiver.spans["wanted"].trace_id.hex() == TRACEPARENT[3:35]
    assert receiver.spans["wanted"].parent_span_id.hex() == TRACEPARENT[36:52]


def test_off_unless_configured() -> None:
    tracing = configure_tracing(service_name="x", otlp_endpoint=None)
    with tracing.tracer("x").start_as_current_span("round") as span:
        assert not span.is_recording()
        assert current_traceparent() == ""
    tracing.install()
    tracing.shutdown()
    assert not tracing.is_on


def test_off_still_hands_on_a_remote_context() -> None:
    tracer = configure_tracing(service_name="x", otlp_endpoint=None).tracer("x")
    parent = context_from_traceparent(TRACEPARENT)
    with tracer.start_as_current_span("call", context=parent):
        assert current_traceparent() == TRACEPARENT


@pytest.mark.parametrize("sample_ratio", [-0.1, 1.1, float("nan")])
def test_sample_ratio_is_checked(sample_ratio: float) -> None:
    with pytest.raises(ValueError, match="sample_ratio"):
        configure_tracing(service_name="x", otlp_endpoint=None, sample_ratio=sample_ratio)


def test_an_endpoint_without_a_scheme_is_called_without_tls(receiver: Receiver) -> None:
    address = receiver.endpoint.removeprefix("http://")
    tracing = configure_tracing(service_name="coordinator", otlp_endpoint=address)
    with tracing.tracer("server").start_as_current_span("round"):
        pass
    tracing.shutdown()
    assert "round" in receiver.spans


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        configure_tracing(service_name="x", otlp_endpoint="grpc://127.0.0.1:4317")


def test_traceparent_is_read_back() -> None:
    span = trace.get_current_span(context_from_traceparent(TRACEPARENT)).get_span_context()
    assert span.is_remote
    assert trace.format_trace_id(span.trace_id) == TRACEPARENT[3:35]
    assert trace.format_span_id(span.span_id) == TRACEPARENT[36:52]


@given(
    st.one_of(
        st.text(max_size=60),
        st.builds(
            lambda i, c: TRACEPARENT[:i] + c + TRACEPARENT[i + 1 :],
            st.sampled_from([0, 2, 3, 35, 36, 52, 53]),
            st.sampled_from("gG \n_"),
        ),
    )
)
def test_anything_else_gives_an_empty_context(text: str) -> None:
    assert not trace.get_current_span(context_from_traceparent(text)).get_span_context().is_valid


@pytest.mark.parametrize("metadata", [None, (), (("traceparent", b"x"),), (("tracestate", "a"),)])
def test_metadata_without_a_traceparent(
    metadata: tuple[tuple[str, str | bytes], ...] | None,
) -> None:
    context = context_from_metadata(metadata)
    assert not trace.get_current_span(context).get_span_context().is_valid


@pytest.mark.slow
def test_install_is_seen_by_other_libraries(receiver: Receiver) -> None:
    program = (
        "import sys; from opentelemetry import trace; from monitoring import tracing\n"
        "assert 'opentelemetry.sdk' not in sys.modules\n"
        "t = tracing.configure_tracing(service_name='d', otlp_endpoint=sys.argv[1]); t.install()\n"
        "trace.get_tracer('library').start_span('download').end(); t.shutdown()\n"
    )
    subprocess.run([sys.executable, "-c", program, receiver.endpoint], cwd=ROOT, check=True)
    assert set(receiver.spans) == {"download"}
