"""How a round's update is encoded: plain or compressed."""

import secrets
from collections.abc import Mapping
from typing import Final

from client.compression.update_compressor import compresses
from client.errors import TrainingError
from client.round.local_update import encode_update
from client.round_encoding import DeliveryContext, RoundEncoding, RoundSealer, policy_refusal
from client.transport.messages import Assignment, SealedPayload
from updates.codec import HEADER_BYTES, CodecError, dense_payload_bytes
from updates.compression_plan import SEED_BYTES, Method, ValueType
from updates.errors import CompressionError
from updates.sparse import Content
from updates.update_codec import codec_for

_VALUE_BITS: Final = {
    ValueType.FLOAT32: 32,
    ValueType.FLOAT16: 16,
    ValueType.BFLOAT16: 16,
    ValueType.INT8: 8,
    ValueType.INT4: 4,
}


_POSITION_BITS: Final = 9  # of a coordinate among a hundred, drawn at random


class PlainEncoding:
    """Dense float32, as `updates.codec` writes it."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment

    @property
    def payload_bytes(self) -> int:
        """The size that every dense payload of the round has."""
        return dense_payload_bytes(self._assignment.dim)

    @property
    def upload_bytes(self) -> int:
        """The payload: the server gets all there is."""
        return self.payload_bytes

    @property
    def takes_stale(self) -> bool:
        """False: the server takes updates of the base version alone."""
        return False

    @property
    def tells_training(self) -> bool:
        """True: the server sees the update itself."""
        return True

    def accepts(self, model_version: int) -> bool:
        """Tell whether the version is the round's own."""
        return model_version == self._assignment.model_version

    def encode(
        self, content: Content, *, model_version: int, layer_sizes: tuple[int, ...] = ()
    ) -> bytes:
        """Write (dim,) float32 as the payload."""
        del model_version, layer_sizes  # the submission tells the first
        return encode_update(content, dim=self._assignment.dim)

    def received(
        self, payload: bytes | SealedPayload, content: Content, *, layer_sizes: tuple[int, ...]
    ) -> Content:
        """Return the content: dense float32 loses nothing."""
        del payload, layer_sizes
        return content

    async def deliver(
        self, payload: bytes | SealedPayload, context: DeliveryContext
    ) -> Mapping[int, bytes]:
        """Send nothing: the server gets everything in the payload."""
        del payload, context
        return {}


class CompressedEncoding(PlainEncoding):
    """What `updates.update_codec` writes by the round's compression plan."""

    @property
    def payload_bytes(self) -> int:
        """0: the size depends on the update."""
        return 0  # it depends on the update

    @property
    def upload_bytes(self) -> int:
        """What an update may take: an estimate."""
        plan = self._assignment.compression
        positions = plan.num_values * _POSITION_BITS if plan.method is Method.TOP_K else 0
        return HEADER_BYTES + (plan.num_values * _VALUE_BITS[plan.value_type] + positions) // 8

    def encode(
        self, content: Content, *, model_version: int, layer_sizes: tuple[int, ...] = ()
    ) -> bytes:
        """Encode with a fresh seed: a payload is made once, whatever happens to it on its way.

        Raises:
            TrainingError: if it is no finite content of the plan's kind and size.
        """
        del model_version
        try:
            codec = codec_for(self._assignment.compression, layer_sizes)
            return codec.encode(content, seed=secrets.token_bytes(SEED_BYTES))
        except (CodecError, CompressionError) as error:
            raise TrainingError(f"the update cannot be encoded: {error}") from error

    def received(
        self, payload: bytes | SealedPayload, content: Content, *, layer_sizes: tuple[int, ...]
    ) -> Content:
        """Decode the payload: what rounding and dropping left of the update."""
        del content
        return codec_for(self._assignment.compression, layer_sizes).decode(payload[:])


def encoding_of(assignment: Assignment, sealer: RoundSealer | None) -> RoundEncoding:
    """Return how the round wants its updates, unless the device is not to take part.

    Raises:
        PreconditionError: if the round is plain and the device must not send plain updates, or
            shared and the device cannot seal, or does not accept its terms.
        ProtocolError: if a shared round's terms cannot be read, or contradict the assignment.
    """
    plan = assignment.compression
    if plan.method is Method.TOP_K:
        if assignment.shared_parameters:
            raise policy_refusal(
                "the round is shared, and top-k would tell which numbers are large"
            )
        if assignment.plan.device_noise_multiplier:
            raise policy_refusal("noise does not hide which coordinates top-k chooses")
    if assignment.shared_parameters:
        if sealer is None:
            raise policy_refusal("the round is shared and sharing is not configured")
        return sealer.encoding(assignment)
    if sealer is not None and sealer.is_required:
        raise policy_refusal("the round is plain: the server would read the update")
    return CompressedEncoding(assignment) if compresses(plan) else PlainEncoding(assignment)
