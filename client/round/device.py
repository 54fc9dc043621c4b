"""What a device keeps from round to round."""

from dataclasses import dataclass, field

from opentelemetry.trace import Tracer

from client.compression.error_memory import ErrorMemory
from client.config import ClientConfig
from client.hooks import ClientHooks
from client.round.deadline import LinkEstimate
from client.round.late_update import LateUpdates
from client.round.model_cache import ModelCache
from client.round_encoding import RoundSealer
from client.runtime import Runtime
from client.trainer import Trainer
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, Progress, ProgressStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What stays the same from round to round."""

    config: ClientConfig
    trainer: Trainer
    transport: FederationTransport
    runtime: Runtime
    hooks: ClientHooks
    tracer: Tracer
    memory: ErrorMemory
    sealer: RoundSealer | None = None
    cache: ModelCache = field(default_factory=ModelCache)
    link: LinkEstimate = field(default_factory=LinkEstimate)
    late: LateUpdates = field(default_factory=LateUpdates)

    def progress(self, assignment: Assignment, stage: ProgressStage) -> Progress:
        """Return the report that the device is at `stage` of a round."""
        return Progress(
            task=assignment.task,
            round=assignment.round,
            device_id=self.config.device_id,
            stage=stage,
        )
