"""Where an application looks into, or changes, what a client does."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from client.outcome import RoundOutcome
from client.round_encoding import RoundSealer
from client.transport.messages import Assignment, DeviceState, Receipt
from client.transport.retry import Retry

UpdateTransform = Callable[[NDArray[np.float32], Assignment], NDArray[np.float32]]


class EventKind(Enum):
    """The moments an application can watch, in the order of a round."""

    ASSIGNED = "assigned"  # `assignment` is set.
    MODEL_READY = "model-ready"
    TRAINED = "trained"
    REUSED = "reused"  # In place of the two above: an update kept from an earlier round is sent.
    SUBMITTING = "submitting"  # `submission_id` is set; the first byte leaves next.
    ACCEPTED = "accepted"  # `receipt` is set; the update counts.
    KEPT = "kept"  # It missed the round and is offered to the next that takes stale ones.
    RESIDUAL_RESET = "residual-reset"  # What compression left out is lost; `detail` says why.
    RETRYING = "retrying"  # `retry` is set.
    ENDED = "ended"  # `outcome` is set.


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientEvent:
    """Something that happened; only the fields of its kind are set."""

    kind: EventKind
    assignment: Assignment | None = None
    submission_id: str | None = None
    receipt: Receipt | None = None
    retry: Retry | None = None
    outcome: RoundOutcome | None = None
    detail: str = ""


def _ignore(_event: ClientEvent) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHooks:
    """Functions that a client calls.

    Attributes:
        device_state: asked before every offer.
        update_transform: replaces the clipped update, (d,) float32, before it is encoded;
            called in a worker thread. Its result is sent unchecked but for shape and dtype; in
            a shared round it is clipped again, as shares of a longer one would not pass. Where
            updates are compressed, it replaces the update before that, not clipped yet, and
            what is compressed is clipped in shared rounds only.
        sealer: seals the updates of shared rounds, in a worker thread; None: as the
            configuration's `sharing` says.
        on_event: called on the event loop; must not block.
    """

    device_state: Callable[[], DeviceState] = DeviceState
    update_transform: UpdateTransform | None = None
    sealer: RoundSealer | None = None
    on_event: Callable[[ClientEvent], None] = _ignore
