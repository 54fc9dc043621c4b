"""What a coordinator knows of its tasks for as long as it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from privacy.charge import Charge
from protos.fedagg.v1 import federation_pb2 as pb
from server.compressing import TaskCompression
from server.config import CriteriaConfig, TaskConfig
from server.convert import plan_of
from server.errors import UnknownTask
from server.round.privacy import RoundPrivacy
from server.round.selection import EligibilityCriteria, SelectionPolicy, cohort_size
from server.sharing.planning import SharedTask
from server.upload import CompressedPayload, DensePayload, PayloadFormat
from updates.codec import dense_payload_bytes
from updates.plan import COMMON_MAPS

_ANY: Final = 1 << 40  # as many eligible devices as one can wish


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """The unchanging facts that every call needs.

    Attributes:
        dim: d, elements of the model.
        max_update_bytes: of the largest payload.
        plan: what all rounds' plans have in common.
        plain_payload: what updates are where rounds are plain.
        shared: of a task whose rounds are shared; None: they are plain.
        compression: None: updates are dense.
    """

    config: TaskConfig
    dim: int
    max_update_bytes: int
    plan: pb.Plan
    criteria: EligibilityCriteria
    selection: SelectionPolicy
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
        privacy = self.config.privacy
        is_sampled = privacy.is_on and privacy.sampling != "none"
        return privacy.population if is_sampled else self.cohort_wanted

    @property
    def summed_dim(self) -> int:
        """Numbers of an update as it is compared, summed and noised."""
        return noised_dim(self.dim, self.compression)

    @property
    def name(self) -> str:
        return self.config.name


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
        return tuple(self._tasks)


def noised_dim(dim: int, compression: TaskCompression | None) -> int:
    """Numbers of an update as it is summed: of what a common map gives, else of the model."""
    if compression is None or compression.method not in COMMON_MAPS:
        return dim
    return compression.num_values


def task_info(
    config: TaskConfig,
    *,
    dim: int,
    shared: SharedTask | None = None,
    compression: TaskCompression | None = None,
    privacy: RoundPrivacy | None = None,
) -> TaskInfo:
    """Facts of one task whose model has `dim` elements.

    Args:
        config: settings.
        dim: elements of the model.
        shared: where rounds are shared.
        compression: how updates are compressed; None: they are dense.
        privacy: of the first round; None: rounds are not private.

    Raises:
        SharingError: if the settings of a shared task fit no sound round.
    """
    plain_payload: PayloadFormat = DensePayload(dim=dim)
    max_update_bytes = dense_payload_bytes(dim)
    if shared is not None:
        shared_dim = compression.num_values if compression else dim
        max_update_bytes = shared.check(dim=shared_dim, privacy=privacy)
    elif compression is not None:
        codec = compression.codec()
        plain_payload = CompressedPayload(codec=codec, num_values=compression.num_values)
        max_update_bytes = codec.max_payload_bytes
    return TaskInfo(
        config=config,
        dim=dim,
        max_update_bytes=max_update_bytes,
        plan=plan_of(
            config.plan,
            device_noise_multiplier=_device_noise(config, privacy),
            reports_clipping=config.privacy.is_on and config.privacy.adaptive_clipping,
        ),
        criteria=_criteria(config.criteria),
        selection=SelectionPolicy(
            reporting_goal=config.reporting_goal,
            over_selection=config.over_selection,
            max_participations=config.max_participations,
            min_rounds_between=config.min_rounds_between,
            fairness=config.fairness,
        ),
        plain_payload=plain_payload,
        shared=shared,
        compression=compression,
    )


def _device_noise(config: TaskConfig, privacy: RoundPrivacy | None) -> float:
    if privacy is None or config.privacy.noise != "device":
        return 0.0
    return Charge.from_text(privacy.charge).noise_multiplier


def _criteria(config: CriteriaConfig) -> EligibilityCriteria:
    return EligibilityCriteria(
        min_battery_percent=config.min_battery_percent,
        require_charging=config.require_charging,
        require_unmetered=config.require_unmetered,
        require_idle=config.require_idle,
        min_ram_mib=config.min_ram_mib,
        min_app_version=config.min_app_version,
    )
