"""How a round wants its updates: readable by the server, or sealed to share holders."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.delivery import DeliveryContext
from client.errors import ErrorReason, PreconditionError
from client.local_update import encode_update
from client.messages import Assignment, SealedPayload
from compression.codec import dense_payload_bytes


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

    def encode(self, vector: NDArray[np.float32], *, model_version: int) -> bytes | SealedPayload:
        """Return the payload for an update, (d,) float32; called in a worker thread.

        Raises:
            TrainingError: if the vector is no finite update of the round's dimension.
        """
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
    """Seals this device's updates; see `client.sharing.UpdateSealer`."""

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


class PlainEncoding:
    """Dense float32, as `compression.codec` writes it."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment

    @property
    def payload_bytes(self) -> int:
        return dense_payload_bytes(self._assignment.dim)

    @property
    def upload_bytes(self) -> int:
        return self.payload_bytes

    @property
    def takes_stale(self) -> bool:
        return False

    @property
    def tells_training(self) -> bool:
        return True

    def accepts(self, model_version: int) -> bool:
        return model_version == self._assignment.model_version

    def encode(self, vector: NDArray[np.float32], *, model_version: int) -> bytes:
        del model_version  # the submission tells it
        return encode_update(vector, dim=self._assignment.dim)

    async def deliver(
        self, payload: bytes | SealedPayload, context: DeliveryContext
    ) -> Mapping[int, bytes]:
        del payload, context
        return {}


def encoding_of(assignment: Assignment, sealer: RoundSealer | None) -> RoundEncoding:
    """Return how the round wants its updates, unless the device is not to take part.

    Raises:
        PreconditionError: if the round is plain and the device must not send plain updates, or
            shared and the device cannot seal, or does not accept its terms.
        ProtocolError: if a shared round's terms cannot be read, or contradict the assignment.
    """
    if assignment.shared_parameters:
        if sealer is None:
            raise policy_refusal("the round is shared and sharing is not configured")
        return sealer.encoding(assignment)
    if sealer is not None and sealer.is_required:
        raise policy_refusal("the round is plain: the server would read the update")
    return PlainEncoding(assignment)


def policy_refusal(message: str) -> PreconditionError:
    """Return the error with which this device itself refuses a round."""
    return PreconditionError(ErrorReason.WEAKER_THAN_POLICY, message)
