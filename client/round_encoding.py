"""How a round wants its updates: readable by the server, or sealed to share holders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from client.errors import ErrorReason, PreconditionError
from client.runtime import Runtime
from client.transport.federation_transport import Traffic
from client.transport.messages import Assignment, SealedPayload
from client.transport.retry import Retry
from updates.sparse import Content


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryContext:
    """One delivery's time, and who is told of it.

    Attributes:
        runtime: clock, sleep and randomness.
        deadline_at: instant of the runtime's clock after which the round takes no more updates.
        traffic: where the bytes sent are counted.
        on_retry: told before each wait for another try.
    """

    runtime: Runtime
    deadline_at: float
    traffic: Traffic
    on_retry: Callable[[Retry], None] | None = None


class RoundEncoding(Protocol):
    """Makes the payloads of one round."""

    @property
    def payload_bytes(self) -> int:
        """Size of a payload; of a sealed one, without the part in front of the shares."""
        ...

    @property
    def upload_bytes(self) -> int:
        """Bytes that leave the device for one update, whoever gets them; likewise."""
        ...

    @property
    def takes_stale(self) -> bool:
        """Whether a round of this kind may take updates of older model versions."""
        ...

    @property
    def tells_training(self) -> bool:
        """Whether the server is told the number of samples and the losses."""
        ...

    def accepts(self, model_version: int) -> bool:
        """Return whether the round takes an update that was trained from this version."""
        ...

    def encode(
        self, content: Content, *, model_version: int, layer_sizes: tuple[int, ...] = ()
    ) -> bytes | SealedPayload:
        """Return the payload for an update; called in a worker thread.

        Args:
            content: what the round's compression makes of an update; (d,) float32 without one.
            model_version: version it was trained from.
            layer_sizes: elements of each tensor, in model order.

        Raises:
            TrainingError: if it is no finite update of the round's size.
        """
        ...

    def received(
        self, payload: bytes | SealedPayload, content: Content, *, layer_sizes: tuple[int, ...]
    ) -> Content:
        """Return what the payload's receivers read, given what `encode` made it from."""
        ...

    async def deliver(
        self, payload: bytes | SealedPayload, context: DeliveryContext
    ) -> Mapping[int, bytes]:
        """Send what has to be elsewhere before the server gets the payload.

        Returns:
            By share holder, its signed receipt, a serialized SignedStatement; empty where the
            server gets everything.

        Raises:
            FedaggError: if too little of it arrived for the update to count.
        """
        ...


class RoundSealer(Protocol):
    """Seals this device's updates; see `client.sharing.update_sealer.UpdateSealer`."""

    @property
    def is_required(self) -> bool:
        """Whether the device refuses plain rounds."""
        ...

    def encoding(self, assignment: Assignment) -> RoundEncoding:
        """Return how a shared round wants its updates.

        Raises:
            PreconditionError: if the device does not accept the round's terms.
            ProtocolError: if the terms cannot be read, or contradict the assignment.
        """
        ...


def policy_refusal(message: str) -> PreconditionError:
    """Return the error with which this device itself refuses a round."""
    return PreconditionError(ErrorReason.WEAKER_THAN_POLICY, message)
