"""From a local update to what is submitted of it, and what is kept for the next one."""

import asyncio
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.compression.update_compressor import CompressedUpdate, UpdateCompressor, compresses
from client.errors import FedaggError, TrainingError
from client.privacy.device_noise import load_noise
from client.round.device import Device
from client.round.encodings import PlainEncoding, encoding_of
from client.round.local_update import LocalUpdate
from client.round_encoding import RoundEncoding, policy_refusal
from client.transport.messages import Assignment, SealedPayload, Submission
from updates.sparse import Content
from updates.topk import Vector

# The protocol's least; every update of a shared round weighs the same.
_UNTOLD_NUM_SAMPLES: Final = 1

_MAX_ENCODINGS: Final = 4


class SubmissionMaker:
    """Makes the submission of one participation, and settles what the server says of it.

    Attributes:
        encoding: how the round wants its updates.
    """

    def __init__(self, device: Device, assignment: Assignment) -> None:
        """Prepare for a round; nothing is done before `accept_terms`."""
        self.encoding: RoundEncoding = PlainEncoding(assignment)
        self._device = device
        self._assignment = assignment
        self._remembers = assignment.compression.error_feedback
        self._compressor: UpdateCompressor | None = None
        self._remaining: Vector | None = None

    def accept_terms(self) -> None:
        """Decide how the round's update is made, unless the device is not to take part.

        Raises:
            PreconditionError: if the device does not accept the round's terms.
            ProtocolError: if they cannot be read, or contradict each other.
            ClientConfigError: if the round asks for noise, and the extra `fedagg[shared]` is not
                installed.
        """
        self.encoding = encoding_of(self._assignment, self._device.sealer)
        least, asked = self._device.config.min_device_noise_multiplier, self._noise_asked_for()
        if not self._assignment.shared_parameters and asked < least:
            raise policy_refusal(
                f"the round asks for noise of {asked:g} clipping norms, this device for {least:g}"
            )
        self._compressor = self._compressor_of_round()

    def _noise_asked_for(self) -> float:
        plan = self._assignment.plan
        return plan.device_noise_multiplier if plan.clipping_norm > 0 else 0.0

    @property
    def clips_itself(self) -> bool:
        """Whether updates are to come as they are: what is clipped is what is sent of them."""
        return self._compressor is not None

    async def settle_last(self, *, deadline_at: float) -> None:
        """Find out what became of the last update, if what is kept depends on it.

        Raises:
            FedaggError: if the server could not be asked.
        """
        if self._remembers:
            await self._device.memory.settle(deadline_at=deadline_at)

    def make(self, update: LocalUpdate, *, submission_id: str, model_version: int) -> Submission:
        """Compress, encode or seal an update; called in a worker thread.

        Raises:
            TrainingError: if it cannot be sent.
        """
        payload, is_within = self._payload(update, model_version)
        told = update if self._tells_training else None
        return Submission(
            task=self._assignment.task,
            round=self._assignment.round,
            device_id=self._device.config.device_id,
            submission_id=submission_id,
            model_version=model_version,
            num_samples=told.num_samples if told else _UNTOLD_NUM_SAMPLES,
            payload=payload,
            loss_before=told.loss_before if told else None,
            loss_after=told.loss_after if told else None,
            within_clipping_norm=is_within if self._reports_clipping else None,
        )

    async def begin(self, submission: Submission) -> None:
        """Keep what remains of an update, before its first byte leaves.

        Raises:
            ClientConfigError: if it cannot be kept, nor what was kept before be removed.
        """
        if self._remaining is not None:
            await asyncio.to_thread(self._device.memory.begin, submission, self._remaining)

    async def accepted(self) -> None:
        """Learn that the server has taken the update."""
        if self._remaining is not None:
            await self._device.memory.accepted()

    async def failed(self, error: FedaggError) -> None:
        """Learn that sending the update ended with an error."""
        if self._remaining is not None:
            await self._device.memory.failed(error)

    @property
    def _tells_training(self) -> bool:
        # Exact facts are more than a server may know that is to see only sums, or noised updates.
        has_noise = self._assignment.plan.device_noise_multiplier > 0
        return self.encoding.tells_training and not has_noise

    @property
    def _reports_clipping(self) -> bool:
        return self._assignment.plan.reports_clipping and self._tells_training

    def _compressor_of_round(self) -> UpdateCompressor | None:
        plan, terms = self._assignment.compression, self._assignment.plan
        if not compresses(plan) and not terms.device_noise_multiplier:
            return None
        # What an application puts in place of the update is sent as it is, where that can be.
        is_shared = bool(self._assignment.shared_parameters)
        is_clipped = is_shared or self._device.hooks.update_transform is None
        is_noised = is_clipped and terms.device_noise_multiplier > 0
        return UpdateCompressor(
            plan,
            terms,
            clips=is_clipped,
            add_noise=load_noise() if is_noised else None,
            clips_noise=is_shared,  # shares of a longer vector would not pass
        )

    def _payload(
        self, update: LocalUpdate, model_version: int
    ) -> tuple[bytes | SealedPayload, bool]:
        """Return what is sent, and whether it was within the clipping norm before."""
        encoding, compressor, sizes = self.encoding, self._compressor, update.layer_sizes
        vector = self._transformed(update.vector)
        if compressor is None:
            payload = encoding.encode(vector, model_version=model_version, layer_sizes=sizes)
            return payload, update.norm <= self._assignment.plan.clipping_norm
        memory = self._device.memory
        carried = memory.carried(self._assignment) if self._remembers else None
        payload, compressed, received = self._encoded(
            compressor, compressor.compress(vector, carried), update, model_version
        )
        if self._remembers:
            self._remaining = memory.remaining_of(
                payload, compressor.remaining(compressed, received)
            )
        return payload, compressed.is_within_norm

    def _encoded(
        self,
        compressor: UpdateCompressor,
        compressed: CompressedUpdate,
        update: LocalUpdate,
        model_version: int,
    ) -> tuple[bytes | SealedPayload, CompressedUpdate, Content]:
        """Return the payload, what it was made of, and what its receivers read.

        What rounding made too long is made again, shorter; more than once only by chance.
        """
        sizes = update.layer_sizes
        for attempt in range(_MAX_ENCODINGS):
            content = compressed.content
            payload = self.encoding.encode(content, model_version=model_version, layer_sizes=sizes)
            received = self.encoding.received(payload, content, layer_sizes=sizes)
            shorter = compressor.shortened(compressed, received)
            if shorter is None or attempt == _MAX_ENCODINGS - 1:
                break
            compressed = shorter
        return payload, compressed, received

    def _transformed(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        transform = self._device.hooks.update_transform
        if transform is None:
            return vector
        try:
            return transform(vector, self._assignment)
        # As for the trainer: the application's code may raise anything.
        except Exception as error:
            raise TrainingError(f"update_transform raised {error!r}") from error
