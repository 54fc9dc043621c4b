"""Where proto messages stop: requests become checked values, values become responses.

Every field is checked here once, against the range its comment in the .proto states. A request that
fails is `MalformedRequest` naming the field.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from protos.fedagg.v1 import federation_pb2 as pb
from protos.wire import (
    CALL_ID,
    DEVICE_ID,
    DIGEST_BYTES,
    MAX_APP_VERSION_CHARS,
    MAX_NUM_SAMPLES,
    MAX_NUMBER,
    MAX_WAIT_S,
    TASK_NAME,
)
from server.errors import MalformedRequest, UpdateTooLarge
from server.round.ports import Admission, Submission
from server.round.selection import DeviceConditions
from server.round.terms import TrainingPlan

_DATA_TAG: Final = 0x12  # field 2, length-delimited: SubmitUpdateRequest.data
_CONTINUES: Final = 0x80
_MAX_LENGTH_BYTES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn:
    """A device's offer."""

    task: str
    device_id: str
    check_in_id: str
    conditions: DeviceConditions
    max_wait_ms: int


def check_in_of(request: pb.CheckInRequest) -> CheckIn:
    """Check a check-in request.

    Raises:
        MalformedRequest: if a field is out of range.
    """
    _match("task", request.task, TASK_NAME)
    _match("device_id", request.device_id, DEVICE_ID)
    _match("check_in_id", request.check_in_id, CALL_ID)
    _at_most("max_wait_ms", request.max_wait_ms, 1000 * MAX_WAIT_S)
    state = request.state
    battery = state.battery_percent if state.HasField("battery_percent") else None
    _at_most("state.battery_percent", battery or 0, 100)
    _at_most("state.app_version length", len(state.app_version), MAX_APP_VERSION_CHARS)
    return CheckIn(
        task=request.task,
        device_id=request.device_id,
        check_in_id=request.check_in_id,
        conditions=DeviceConditions(
            battery_percent=battery,
            charging=state.charging,
            metered_network=state.metered_network,
            idle=state.idle,
            available_ram_mib=state.available_ram_mib,
            app_version=state.app_version,
        ),
        max_wait_ms=request.max_wait_ms,
    )


def submission_of(header: pb.UpdateHeader, payload: bytes | None) -> Submission:
    """Check a header; `payload` is the whole payload where it came in the same message.

    Raises:
        MalformedRequest: if a field is out of range.
    """
    device_id, submission_id = header.device_id, header.submission_id
    _match("task", header.task, TASK_NAME)
    _match("device_id", device_id, DEVICE_ID)
    _match("submission_id", submission_id, CALL_ID)
    _between("round", header.round, 1, MAX_NUMBER)
    _between("model_version", header.model_version, 1, MAX_NUMBER)
    _between("num_samples", header.num_samples, 1, MAX_NUM_SAMPLES)
    _between("payload_bytes", header.payload_bytes, 1, MAX_NUMBER)
    digest = header.payload_digest
    _between("payload_digest length", len(digest), DIGEST_BYTES, DIGEST_BYTES)
    before = header.loss_before if header.HasField("loss_before") else None
    after = header.loss_after if header.HasField("loss_after") else None
    for name, loss in (("loss_before", before), ("loss_after", after)):
        if loss is not None and not math.isfinite(loss):
            msg = f"{name}={loss} must be finite"
            raise MalformedRequest(msg)
    return Submission(
        task=header.task,
        round_number=header.round,
        device_id=device_id,
        submission_id=submission_id,
        model_version=header.model_version,
        num_samples=header.num_samples,
        payload_bytes=header.payload_bytes,
        digest=digest,
        loss_before=before,
        loss_after=after,
        inline_payload=payload,
        within_clipping_norm=(
            header.within_clipping_norm if header.HasField("within_clipping_norm") else None
        ),
    )


def check_names(*, task: str, device_id: str) -> None:
    """Check the two names that every call of a device carries."""
    _match("task", task, TASK_NAME)
    _match("device_id", device_id, DEVICE_ID)


def check_round_number(number: int) -> None:
    """Check the number of a round.

    Raises:
        MalformedRequest: if it is out of range.
    """
    _between("round", number, 1, MAX_NUMBER)


def check_size(declared: int, *, limit: int) -> None:
    """Refuse a payload that is larger than the task's model can ask for."""
    if declared > limit:
        msg = f"payload_bytes={declared} exceeds the task's limit of {limit}"
        raise UpdateTooLarge(msg)


def receipt_of(submission: Submission, admission: Admission) -> pb.SubmissionReceipt:
    """Write the receipt of an admitted submission; a retry gets the same bytes."""
    return pb.SubmissionReceipt(
        task=submission.task,
        round=submission.round_number,
        device_id=submission.device_id,
        submission_id=submission.submission_id,
        payload_digest=submission.digest,
        accepted_at_ms=admission.accepted_at_ms,
    )


def plan_of(plan: TrainingPlan) -> pb.Plan:
    """Return what all rounds of a task ask of a device; without privacy, no word of it."""
    privacy = None
    if plan.device_noise_multiplier or plan.reports_clipping:
        privacy = pb.PrivacyPlan(
            device_noise_multiplier=plan.device_noise_multiplier,
            reports_clipping=plan.reports_clipping,
        )
    return pb.Plan(
        local_epochs=plan.local_epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        clipping_norm=plan.clipping_norm,
        hyperparameters=plan.hyperparameters,
        privacy=privacy,
    )


def upload_part(message: bytes) -> pb.UpdateHeader | memoryview:
    """Decode one `SubmitUpdateRequest`: its header, or a view of its data.

    protobuf copies a bytes field twice on the way to Python. A message that is exactly one data
    field, as every client writes it, is sliced here instead; anything else goes through protobuf,
    so the wire format is the same.

    Raises:
        MalformedRequest: if the bytes are no such message or hold no part.
    """
    view = _data_view(message)
    if view is not None:
        return view
    try:
        request = pb.SubmitUpdateRequest.FromString(message)
    except DecodeError as error:
        msg = "the message is not a SubmitUpdateRequest"
        raise MalformedRequest(msg) from error
    match request.WhichOneof("part"):
        case "header":
            return request.header
        case "data":
            return memoryview(request.data)
        case _:
            msg = "the message holds neither a header nor data"
            raise MalformedRequest(msg)


def _data_view(message: bytes) -> memoryview | None:
    if not message or message[0] != _DATA_TAG:
        return None
    length = 0
    for position, byte in enumerate(message[1 : 1 + _MAX_LENGTH_BYTES]):
        length |= (byte & ~_CONTINUES) << (7 * position)
        if byte < _CONTINUES:
            start = position + 2
            return memoryview(message)[start:] if len(message) - start == length else None
    return None


def _match(name: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        msg = f"{name}={value[:140]!r} must match {pattern.pattern}"
        raise MalformedRequest(msg)


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        msg = f"{name}={value} must lie in [{low}, {high}]"
        raise MalformedRequest(msg)


def _at_most(name: str, value: int, high: int) -> None:
    if value > high:
        msg = f"{name}={value} must be at most {high}"
        raise MalformedRequest(msg)
