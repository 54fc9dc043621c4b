"""One trace from the device's training through upload, aggregation and publication."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from client import ClientConfig, MobileClient, Runtime
from monitoring.tracing import configure_tracing
from tests.integration.service import TASK, serving
from tests.integration.trainers import Adding
from tests.monitoring.otlp_receiver import Receiver, receiving

COORDINATOR: Final = "fedagg-coordinator"
DEVICE: Final = "device"
RPC: Final = "fedagg.v1.Federation/"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


async def run_one_round(receiver: Receiver, folder: Path, store_url: str, *, dim: int) -> None:
    """A device and a coordinator do a round, each with a tracer of its own, and stop."""
    device = configure_tracing(service_name=DEVICE, otlp_endpoint=receiver.endpoint)
    sections = {"observability": {"otlp-endpoint": receiver.endpoint}}
    task = {"reporting-goal": 1, "num-rounds": 1}
    async with serving(folder, store_url, task=task, sections=sections, dim=dim) as service:
        config = ClientConfig(servers=(service.address,), task=TASK, device_id="d1", insecure=True)
        runtime = Runtime(tracer_provider=device.provider)
        async with MobileClient(config, Adding(1.0), runtime=runtime) as client:
            assert await client.run() == 1
        record = await service.finished(1)
        assert len(record["traceparent"]) == 55
    device.shutdown()


def by_name(receiver: Receiver, trace_id: bytes) -> dict[str, tuple[str, Span]]:
    """The trace's spans; each name must be there once."""
    spans = [(service, s) for service, s in receiver.received if s.trace_id == trace_id]
    names = [span.name for _, span in spans]
    assert len(names) == len(set(names)), names
    return {span.name: (service, span) for service, span in spans}


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "submit"), [(7, "SubmitInlineUpdate"), (50_000, "SubmitUpdate")])
async def test_a_round_is_one_trace(
    receiver: Receiver, tmp_path: Path, redis_url: str, dim: int, submit: str
) -> None:
    await run_one_round(receiver, tmp_path, redis_url, dim=dim)
    root = receiver.spans["round"]
    assert root.parent_span_id == b""
    trace = by_name(receiver, root.trace_id)
    parents = {
        "device.round": (DEVICE, "round"),
        "device.fetch_model": (DEVICE, "device.round"),
        "device.train": (DEVICE, "device.round"),
        "device.submit": (DEVICE, "device.round"),
        RPC + "FetchModel": (COORDINATOR, "device.fetch_model"),
        RPC + submit: (COORDINATOR, "device.submit"),
        "aggregate": (COORDINATOR, "round"),
        "validate": (COORDINATOR, "round"),
        "published": (COORDINATOR, "round"),
    }
    assert set(trace) == {*parents, "round"}
    for name, (service, parent) in parents.items():
        assert trace[name][0] == service, name
        assert trace[name][1].parent_span_id == trace[parent][1].span_id, name
    assert trace[RPC + submit][1].kind == Span.SPAN_KIND_SERVER
    # They come one after the other.
    order = ["device.fetch_model", "device.train", "device.submit", "aggregate", "published"]
    starts = [trace[name][1].start_time_unix_nano for name in order]
    assert starts == sorted(starts)


async def test_without_a_collector_there_is_no_trace(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url, task={"reporting-goal": 1}) as service:
        (assignment,) = await service.open_round("d1")
        assert assignment.traceparent == ""
