"""Refusals of the layers below, as the errors that a service answers with."""

from security.errors import SharedRoundError
from server.errors import ServiceError
from server.holder.storage.holder_state import Event, HolderEventRefused, HolderRound, step
from server.wire.status import refusal


def as_service_error(error: SharedRoundError) -> ServiceError:
    """Return the error of the same reason."""
    return refusal(error.reason, str(error))


def stepped(state: HolderRound, event: Event) -> HolderRound:
    """Return the state after an event.

    Raises:
        ServiceError: with the state machine's reason, if it refuses the event.
    """
    try:
        return step(state, event)
    except HolderEventRefused as error:
        raise refusal(error.refusal.value, error.why) from error
