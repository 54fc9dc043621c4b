"""The values that a device exchanges with the server."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import xxhash

from client.trainer import Plan
from updates.compression_plan import CompressionPlan, dense_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What decides whether the device may be selected. The default: idle, on mains.

    Attributes:
        battery_percent: charge, 0 to 100; None: no battery.
        charging: charging or on mains.
        metered_network: the network is metered.
        idle: nobody uses the device.
        available_ram_mib: free memory in MiB; 0: not told.
        app_version: dotted numbers; empty: not told.
    """

    battery_percent: int | None = None
    charging: bool = True
    metered_network: bool = False
    idle: bool = True
    available_ram_mib: int = 0
    app_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One check-in; a retry repeats it with the same `check_in_id`."""

    task: str
    device_id: str
    check_in_id: str
    state: DeviceState
    max_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The device is in the cohort of a round.

    Attributes:
        ttl_s: seconds from the arrival of the answer until the round takes no more updates.
        dim: elements of an update.
        max_update_bytes: largest payload the round accepts.
        traceparent: W3C trace context of the round; empty: tracing is off.
        shared_parameters: what a shared round fixes, serialized; empty: a plain round.
        direct_delivery: in a shared round, the share holders get their shares from the device.
    """

    task: str
    round: int
    model_version: int
    model_sha256: str
    model_bytes: int
    dim: int
    ttl_s: float
    max_update_bytes: int
    plan: Plan
    traceparent: str = ""
    shared_parameters: bytes = field(default=b"", repr=False)
    direct_delivery: bool = False

    @property
    def compression(self) -> CompressionPlan:
        """How updates of the round are compressed; the dense plan where nothing is said of it."""
        return self.plan.compression or dense_plan(self.dim)


class RetryLaterReason(Enum):
    """Why the device is in no cohort now."""

    NOT_SELECTED = 1
    WAITING = 2
    NO_OPEN_ROUND = 3
    NOT_ELIGIBLE = 4
    TASK_FINISHED = 5
    BUDGET_EXHAUSTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLater:
    """The device is in no cohort now and should ask again after `retry_after_s`."""

    reason: RetryLaterReason
    retry_after_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A model file to download, with what the assignment promised about it."""

    task: str
    device_id: str
    model_version: int
    sha256: str
    total_bytes: int


class SealedPayload(Protocol):
    """A payload that is made piece by piece while it is sent, the same bytes every time."""

    @property
    def digest(self) -> bytes:
        """XXH3-128 of all bytes, big-endian, 16 bytes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One encoded update. `submission_id` stays the same however often it is sent.

    Attributes:
        within_clipping_norm: whether the update was before it was clipped; None: not told.
    """

    task: str
    round: int
    device_id: str
    submission_id: str
    model_version: int
    num_samples: int
    payload: bytes | SealedPayload = field(repr=False)
    loss_before: float | None = None
    loss_after: float | None = None
    within_clipping_norm: bool | None = None
    payload_digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        payload = self.payload
        digest = xxhash.xxh3_128_digest(payload) if isinstance(payload, bytes) else payload.digest
        object.__setattr__(self, "payload_digest", digest)

    @property
    def key(self) -> "SubmissionKey":
        """What names this submission to the server."""
        return SubmissionKey(
            task=self.task,
            round=self.round,
            device_id=self.device_id,
            submission_id=self.submission_id,
            payload_digest=self.payload_digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionKey:
    """What the server knows a submission by; its digest is 16 bytes."""

    task: str
    round: int
    device_id: str
    submission_id: str
    payload_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The server's promise that the update is durable and counts once."""

    task: str
    round: int
    device_id: str
    submission_id: str
    payload_digest: bytes
    accepted_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How much of an interrupted upload is stored; the receipt when nothing is left to do."""

    stored_bytes: int
    receipt: Receipt | None


class ProgressStage(Enum):
    """Where the device is within a round."""

    DOWNLOADING = 1
    TRAINING = 2
    UPLOADING = 3
    FAILED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the device is: `fraction` (0 to 1) of `stage` is done."""

    task: str
    round: int
    device_id: str
    stage: ProgressStage
    fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """Whether the round still waits, and for how many seconds."""

    is_open: bool
    ttl_s: float
