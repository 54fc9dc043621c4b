"""The update that missed its round and waits for one that still takes it."""

from dataclasses import dataclass

from client.round.local_update import LocalUpdate
from client.round_encoding import RoundEncoding
from client.transport.messages import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUpdate:
    """An update and the last round it was made for, which closed before it was sent.

    Attributes:
        model_version: version it was trained from.
    """

    task: str
    round: int
    model_version: int
    update: LocalUpdate


class LateUpdates:
    """Holds one late update, in memory.

    An update is put here only before anything of it was sent. Whatever a server says of what it
    was sent, it may lie: an update sealed for two rounds can be the difference of two sums.
    """

    def __init__(self) -> None:
        self._late: LateUpdate | None = None

    def put(self, late: LateUpdate) -> None:
        """Hold `late` in place of the last one."""
        self._late = late

    def forget(self) -> None:
        """Hold nothing."""
        self._late = None

    def take(self, assignment: Assignment, encoding: RoundEncoding) -> LateUpdate | None:
        """Return the update held if a later round takes it; it is held no longer either way."""
        late, self._late = self._late, None
        if late is None or (late.task, late.update.vector.shape) != (
            assignment.task,
            (assignment.dim,),
        ):
            return None
        is_later = assignment.round > late.round
        return late if is_later and encoding.accepts(late.model_version) else None
