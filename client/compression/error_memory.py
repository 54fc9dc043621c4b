"""What compression left out of a device's updates, from round to round."""

import asyncio

from client.compression.residual_store import ResidualStore
from client.config import ClientConfig
from client.errors import (
    AuthenticationError,
    ClientConfigError,
    ErrorReason,
    FedaggError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ProtocolError,
    RefusedError,
    ServerInternalError,
)
from client.state.private_files import PrivateFolder, PrivateMemory, PrivateStore
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, SealedPayload, Submission
from updates import error_feedback
from updates.error_feedback import Residual
from updates.topk import Vector


class ErrorMemory:
    """Error feedback of one device: what is added to an update, and what is kept of it.

    Called from one participation at a time. Between `begin` and the server's answer the device
    may end at any point: the next participation asks the server how that went.
    """

    def __init__(self, config: ClientConfig, transport: FederationTransport) -> None:
        """Open the device's store.

        Raises:
            ClientConfigError: if `config.state_dir` cannot be made.
        """
        self._store = ResidualStore(_files(config), task=config.task, device_id=config.device_id)
        self._transport = transport
        self._sealed: tuple[SealedPayload, Vector] | None = None

    async def settle(self, *, deadline_at: float) -> None:
        """Find out what became of an update whose answer never came.

        Raises:
            FedaggError: if the server could not be asked; nothing is lost.
        """
        key = await asyncio.to_thread(self._store.pending)
        if key is None:
            return
        try:
            receipt = await self._transport.accepted_receipt(key, deadline_at=deadline_at)
        except NotFoundError:
            receipt = None
        except (InvalidRequestError, PreconditionError, ProtocolError) as error:
            # It will never tell, and either guess could count something twice.
            await asyncio.to_thread(
                self._store.reset, f"the server cannot tell of the last update: {error}"
            )
            return
        await asyncio.to_thread(self._store.commit if receipt else self._store.drop)

    def carried(self, assignment: Assignment) -> Vector | None:
        """Return what is added to the round's update, (d,) float32; None: nothing."""
        plan = assignment.compression
        return error_feedback.carried(
            self._store.current(dim=plan.dim),
            round_number=assignment.round,
            decay=plan.residual_decay,
            max_age=plan.max_residual_age,
        )

    def remaining_of(self, payload: bytes | SealedPayload, remaining: Vector) -> Vector:
        """Return what remains of the update in `payload`, which may have been sealed earlier.

        Args:
            payload: what is sent.
            remaining: what remains of the newest update.
        """
        if isinstance(payload, bytes):
            return remaining
        if self._sealed is None or self._sealed[0] is not payload:
            self._sealed = payload, remaining
        return self._sealed[1]

    def begin(self, submission: Submission, remaining: Vector) -> None:
        """Keep what remains of an update that is sent next, if the server takes it.

        Raises:
            ClientConfigError: if it cannot be kept, nor what was kept before be removed.
        """
        self._store.begin(submission.key, Residual(vector=remaining, round=submission.round))

    async def accepted(self) -> None:
        """Learn that the server has taken the update."""
        await asyncio.to_thread(self._store.commit)

    async def failed(self, error: FedaggError) -> None:
        """Learn that the submission ended with an error."""
        if _is_final(error):
            await asyncio.to_thread(self._store.drop)

    def notices(self) -> list[str]:
        """Return why anything was reset since the last call."""
        return self._store.notices()

    def forget(self) -> None:
        """Remove everything, on disk too.

        Raises:
            ClientConfigError: if a file cannot be removed.
        """
        self._store.forget()


def _is_final(error: FedaggError) -> bool:
    """Return whether the server itself said no, so that the update never counts."""
    if not isinstance(error, RefusedError) or error.retryable:
        return False
    # A defect may have struck after the update was taken, and a certificate may have ended
    # between two attempts.
    if isinstance(error, ServerInternalError | AuthenticationError):
        return False
    return error.reason is not ErrorReason.ERROR_REASON_UNSPECIFIED


def _files(config: ClientConfig) -> PrivateStore:
    if config.state_dir is None:
        return PrivateMemory()
    try:
        return PrivateFolder(config.state_dir)
    except OSError as error:
        message = f"state_dir={str(config.state_dir)!r} cannot be used: {error.strerror}"
        raise ClientConfigError(message) from error
