"""Clients of a scripted server, and what they tell."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from client.config import ClientConfig
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.mobile_client import MobileClient
from client.runtime import Runtime
from client.trainer import Plan, TrainingResult, Weights
from client.transport.messages import Assignment, DeviceState
from protos.fedagg.v1 import federation_pb2 as pb
from tests.client.federation import FakeTime, Served, make_config
from updates.vectors import encode_model

BIG = {"weight": np.zeros(100_000, dtype=np.float32)}


class ShiftTrainer:
    """Adds a constant to every weight; calls `during` while it trains."""

    def __init__(
        self, shift: float = 1.0, during: Callable[[Callable[[], bool]], None] | None = None
    ) -> None:
        self.plans: list[Plan] = []
        self.threads: list[threading.Thread] = []
        self.during = during
        self.shift = np.float32(shift)

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        self.plans.append(plan)
        self.threads.append(threading.current_thread())
        if self.during:
            self.during(should_stop)
        return TrainingResult(
            weights={name: tensor + self.shift for name, tensor in weights.items()},
            num_samples=20,
            loss_before=3.0,
            loss_after=1.5,
        )


class Bench:
    """Makes clients of one server and keeps what they tell."""

    def __init__(self, served: Served, fake_time: FakeTime) -> None:
        self.script = served.script
        self.address = served.address
        self.time = fake_time
        self.events: list[ClientEvent] = []
        self.exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._clients: list[MobileClient] = []

    def client(
        self,
        trainer: ShiftTrainer | None = None,
        *,
        config: ClientConfig | None = None,
        transform: Callable[[NDArray[np.float32], Assignment], NDArray[np.float32]] | None = None,
    ) -> MobileClient:
        client = MobileClient(
            config or make_config(self.address),
            trainer or ShiftTrainer(),
            hooks=ClientHooks(
                device_state=lambda: DeviceState(battery_percent=55, charging=False),
                update_transform=transform,
                on_event=self.events.append,
            ),
            runtime=Runtime(
                clock=self.time.clock, sleep=self.time.sleep, tracer_provider=self._provider
            ),
        )
        self._clients.append(client)
        return client

    def answer(self, *reasons: pb.RetryLater.Reason.ValueType, retry_after_ms: int = 1_500) -> None:
        for reason in reasons:
            later = pb.RetryLater(reason=reason, retry_after_ms=retry_after_ms)
            self.script.answers.append(pb.CheckInResponse(retry_later=later))

    def serve_big_model(self) -> None:
        self.script.model = encode_model(BIG)
        self.script.dim = 100_000
        self.script.chunk_bytes = 100_000
        self.script.__post_init__()

    def check_in_ids(self) -> list[str]:
        return [
            request.check_in_id
            for request in self.script.requests("CheckIn")
            if isinstance(request, pb.CheckInRequest)
        ]

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
