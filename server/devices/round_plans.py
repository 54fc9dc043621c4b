"""What a device is told to do in a round: the task's plan, and what each round has of its own."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from privacy.charge import Charge
from protos.fedagg.v1 import federation_pb2 as pb
from server.compression.round_compression import RoundCompression
from server.round.ports import CheckInAnswer
from server.round.round_privacy import NOISE_OF_DEVICES, RoundPrivacy
from server.task.task_info import TaskInfo
from server.wire.device_messages import plan_of
from updates import plan_message

MAX_KNOWN_PLANS: Final = 64  # of all tasks


class RoundPlans:
    """The plan messages of all tasks' rounds.

    Args:
        compressions: by task; tasks whose updates are dense are missing.
    """

    def __init__(self, compressions: Mapping[str, RoundCompression]) -> None:
        self._compressions = compressions
        self._common: dict[str, pb.Plan] = {}
        self._plans: OrderedDict[tuple[str, int, int, float, float], pb.Plan] = OrderedDict()

    async def plan(self, task: TaskInfo, answer: CheckInAnswer) -> pb.Plan:
        """Make the plan of the round that a device was assigned to. Not to be modified: it is kept.

        Raises:
            Unavailable: if a store did not answer.

        Guarantees:
            Equal on every coordinator of the same settings and stores.
        """
        common = self._common.get(task.name)
        if common is None:
            common = self._common[task.name] = plan_of(task.plan)
        compression = self._compressions.get(task.name)
        if compression is None and answer.privacy is None:
            return common
        privacy = answer.privacy
        norm = task.plan.clipping_norm if privacy is None else privacy.clipping_norm
        noise = _device_noise(task, privacy)
        key = (task.name, answer.round_number, answer.base_version, norm, noise)
        known = self._plans.get(key)
        if known is None:
            known = await self._make(common, answer, compression)
            known.clipping_norm = norm
            if known.privacy.device_noise_multiplier != noise:
                known.privacy.device_noise_multiplier = noise
            self._plans[key] = known
            if len(self._plans) > MAX_KNOWN_PLANS:
                self._plans.popitem(last=False)
        return known

    async def _make(
        self,
        common: pb.Plan,
        answer: CheckInAnswer,
        compression: RoundCompression | None,
    ) -> pb.Plan:
        plan = pb.Plan()
        plan.CopyFrom(common)
        if compression is not None:
            made = await compression.plan(
                round_number=answer.round_number, base_version=answer.base_version
            )
            plan.compression.CopyFrom(plan_message.to_message(made))
        return plan


def _device_noise(task: TaskInfo, privacy: RoundPrivacy | None) -> float:
    """Return what each device adds: as the round was charged, whatever the settings say by now."""
    if privacy is None:
        return task.plan.device_noise_multiplier
    if privacy.noise != NOISE_OF_DEVICES:
        return 0.0
    return Charge.from_text(privacy.charge).noise_multiplier
