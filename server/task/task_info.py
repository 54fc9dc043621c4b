"""What a coordinator knows of its tasks for as long as it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from server.compression.task_compression import TaskCompression
from server.errors import UnknownTask
from server.round.selection import EligibilityCriteria, SelectionPolicy, cohort_size
from server.round.terms import PrivacyTerms, RoundTerms, TrainingPlan
from server.sharing.shared_task import SharedTask
from server.task.payload_format import PayloadFormat
from updates.compression_plan import COMMON_MAPS

_ANY: Final = 1 << 40  # as many eligible devices as one can wish


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """The unchanging facts that every call needs.

    Attributes:
        name: of the task.
        dim: d, elements of the model.
        max_update_bytes: of the largest payload.
        terms: how rounds begin and end.
        plan: what all rounds ask of a device.
        criteria, selection: who takes part.
        privacy: what is claimed of it.
        plain_payload: what updates are where rounds are plain.
        shared: of a task whose rounds are shared; None: they are plain.
        compression: None: updates are dense.
    """

    name: str
    dim: int
    max_update_bytes: int
    terms: RoundTerms
    plan: TrainingPlan
    criteria: EligibilityCriteria
    selection: SelectionPolicy
    privacy: PrivacyTerms
    plain_payload: PayloadFormat
    shared: SharedTask | None = None
    compression: TaskCompression | None = None

    @property
    def cohort_wanted(self) -> int:
        """Devices selected for a round where there are enough."""
        return cohort_size(self.selection, _ANY)

    @property
    def offers_wanted(self) -> int:
        """Offers with which a round selects at once; where cohorts are sampled, everybody's."""
        return self.terms.population if self.terms.is_sampled else self.cohort_wanted

    @property
    def summed_dim(self) -> int:
        """Numbers of an update as it is compared, summed and noised."""
        return noised_dim(self.dim, self.compression)


class TaskDirectory:
    """The tasks this coordinator serves, by name."""

    def __init__(self, tasks: Iterable[TaskInfo]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __getitem__(self, name: str) -> TaskInfo:
        """Look a task up.

        Raises:
            UnknownTask: if this coordinator serves no such task.
        """
        try:
            return self._tasks[name]
        except KeyError:
            msg = f"no task named {name[:64]!r}"
            raise UnknownTask(msg) from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the configuration."""
        return tuple(self._tasks)


def noised_dim(dim: int, compression: TaskCompression | None) -> int:
    """Count an update's numbers as it is summed: what a common map gives, else the model's."""
    if compression is None or compression.method not in COMMON_MAPS:
        return dim
    return compression.num_values
