"""The facts of one shared round, which every party checks by itself and binds by hash."""

import hashlib
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from google.protobuf.message import DecodeError

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import MalformedMessageError, SharingError
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms import bounds
from security.shared_round.terms.parameter_facts import (
    ALL_MEMBERS,
    LEAST_SKETCH_DIM,
    LEAST_WRAP_TESTS,
    Checks,
    Degraded,
    ShareFormat,
)
from security.shared_round.terms.parameter_fields import ParameterFields
from security.shared_round.terms.parameter_rules import check_parameters

VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundParameters(ParameterFields):
    """The facts of one round, in range: the fields of `ParameterFields`, bound by their hash.

    Attributes:
        sha256: SHA-256 of `to_bytes()`, 32 bytes.

    Raises:
        SharingError: if a field is out of range, or some number that is opened could wrap around.

    Guarantees:
        m w Q plus twelve standard deviations of all dealers' noise is below p / 2 and 2^53, for
        m = max_members and w the largest weight: every sum decodes exactly. With checks, also the
        opened squares stay below p / 2 and the bounds of the wrap-around test below sqrt(p) / 11.
        Parameters without noise and compression have the bytes that they had before either was
        known.
    """

    sha256: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is out of range or could wrap around."""
        check_parameters(self)
        object.__setattr__(self, "sha256", hashlib.sha256(self.to_bytes()).digest())

    def to_bytes(self) -> bytes:
        """Serialize; equal parameters give equal bytes."""
        message = pb.RoundParameters(version=VERSION)
        for name in _PLAIN_FIELDS:
            setattr(message, name, getattr(self, name))
        message.format = pb.ShareFormat.ValueType(self.format.number)
        message.checks = pb.Checks.ValueType(self.checks.number)
        message.degraded = pb.Degraded.ValueType(self.degraded.number)
        message.staleness_weights.extend(self.staleness_weights)
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoundParameters":
        """Read serialized parameters.

        Raises:
            MalformedMessageError: if they are not exactly what `to_bytes` makes of valid ones.

        Guarantees:
            from_bytes(data).to_bytes() == data, so both hash alike.
        """
        message = pb.RoundParameters()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            text = "the round's parameters are no RoundParameters message"
            raise MalformedMessageError(text) from error
        if message.version != VERSION:
            text = f"version={message.version} of the round's parameters must be {VERSION}"
            raise MalformedMessageError(text)
        try:
            parameters = cls(
                **{name: getattr(message, name) for name in _PLAIN_FIELDS},
                format=ShareFormat.numbered(message.format),
                checks=Checks.numbered(message.checks),
                degraded=Degraded.numbered(message.degraded),
                staleness_weights=tuple(message.staleness_weights),
            )
        except ValueError as error:  # SharingError is one, and so is an unknown enum's
            text = f"the round's parameters: {error}"
            raise MalformedMessageError(text) from error
        if parameters.to_bytes() != data:
            text = "the round's parameters must be in their one canonical form"
            raise MalformedMessageError(text)
        return parameters


_WRAP_GROUPS: Final = (32, 16, 8)
_MASK_SCALES: Final = (12, 10, 8, 6, 5, 4, 3)
_CHOSEN_FIELDS: Final = ("field_bits", "sketch_dim", "wrap_tests", "wrap_group", "mask_scale")
_DERIVED_FIELDS: Final = ("quorum", "norm_bound", "noise_dealers", "noise_stddev")
_PLAIN_FIELDS: Final = (
    "task",
    "round",
    "base_version",
    "model_sha256",
    "committee_sha256",
    "threshold",
    "holders",
    "quorum",
    "dim",
    "field_bits",
    "fraction_bits",
    "norm_bound",
    "sketch_dim",
    "wrap_tests",
    "wrap_group",
    "mask_scale",
    "min_members",
    "max_members",
    "rule",
    "num_byzantine",
    "num_to_select",
    "group_size",
    "noise_dealers",
    "noise_stddev",
    "compression_sha256",
)
_PLANNED_FIELDS: Final = tuple(
    name
    for name in (*_PLAIN_FIELDS, "format", "checks", "degraded", "staleness_weights")
    if name not in (*_CHOSEN_FIELDS, *_DERIVED_FIELDS)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What an operator asks of a round; `plan_parameters` picks the numbers that make it sound.

    Attributes:
        clip_norm: C, the L2 norm that devices clip their updates to; above 0.
        quorum: 0: ceil((n + t) / 2).
        expected_members: updates that the round will probably have; 0: max_members.
        noise_multiplier: z, noise that t - 1 dealers cannot take out over the sum's sensitivity;
            0: no noise. A quorum of holders deals it.
        sensitivity: of the sum of the selected updates to one of them, in norm bounds; from 1.
        compression_sha256: see `RoundParameters`.
    """

    task: str
    round: int
    base_version: int
    model_sha256: str
    committee_sha256: bytes
    threshold: int
    holders: int
    dim: int
    clip_norm: float
    min_members: int
    max_members: int
    format: ShareFormat = ShareFormat.CNF_SEEDED
    checks: Checks = Checks.DISTANCES
    fraction_bits: int = 20
    quorum: int = 0
    sketch_dim: int = LEAST_SKETCH_DIM
    wrap_tests: int = LEAST_WRAP_TESTS
    expected_members: int = 0
    rule: str = ALL_MEMBERS
    num_byzantine: int = 0
    num_to_select: int = 0
    group_size: int = 0
    degraded: Degraded = Degraded.WAIT
    staleness_weights: tuple[int, ...] = (1,)
    noise_multiplier: float = 0.0
    sensitivity: float = 1.0
    compression_sha256: bytes = b""


def plan_parameters(plan: RoundPlan) -> RoundParameters:
    """Pick field, mask scale and group of the wrap-around test for a round.

    Without checks the field is the narrowest that every sum fits. With checks it has 61 bits, and
    the largest group with the widest masks is taken for which the test is sound.

    Raises:
        SharingError: if a setting is out of range, or nothing fits: the clipping norm or the
            number of fractional bits is too large then.
    """
    if not (0.0 < plan.clip_norm < math.inf):
        message = f"clip_norm={plan.clip_norm} must be finite and above 0"
        raise SharingError(message)
    if not (0.0 <= plan.noise_multiplier < math.inf and 1.0 <= plan.sensitivity < math.inf):
        message = f"noise_multiplier={plan.noise_multiplier} must be finite and at least 0,"
        message += f" sensitivity={plan.sensitivity} finite and at least 1"
        raise SharingError(message)
    candidates = _tests_to_try(plan) if plan.checks is not Checks.SUM else _fields_to_try()
    refusal: SharingError | None = None
    for candidate in candidates:
        try:
            return _planned(plan, candidate)
        except SharingError as error:
            refusal = error
    message = f"no parameters fit clip_norm={plan.clip_norm} and"
    message += f" fraction_bits={plan.fraction_bits}: {refusal}"
    raise SharingError(message) from refusal


def _fields_to_try() -> list[dict[str, int]]:
    return [
        {"field_bits": bits, "sketch_dim": 0, "wrap_tests": 0, "wrap_group": 0, "mask_scale": 0}
        for bits in (31, 61)
    ]


def _tests_to_try(plan: RoundPlan) -> list[dict[str, int]]:
    expected = max(2, plan.expected_members or plan.max_members)
    return [
        {
            "field_bits": 61,
            "sketch_dim": plan.sketch_dim,
            "wrap_tests": plan.wrap_tests,
            "wrap_group": min(group, expected),
            "mask_scale": scale,
        }
        for group in _WRAP_GROUPS
        for scale in _MASK_SCALES
    ]


def _planned(plan: RoundPlan, chosen: dict[str, int]) -> RoundParameters:
    scheme = Threshold(threshold=plan.threshold, holders=plan.holders)
    bound = bounds.norm_bound(plan.clip_norm, fraction_bits=plan.fraction_bits, dim=plan.dim)
    settings = {name: getattr(plan, name) for name in _PLANNED_FIELDS} | chosen
    quorum = plan.quorum or scheme.default_quorum
    dealers, stddev = _planned_noise(plan, quorum, bound)
    return RoundParameters(
        **settings, quorum=quorum, norm_bound=bound, noise_dealers=dealers, noise_stddev=stddev
    )


def _planned_noise(plan: RoundPlan, quorum: int, bound: int) -> tuple[int, int]:
    """Return how many holders deal noise, and the standard deviation of each one's."""
    if plan.noise_multiplier == 0.0:
        return 0, 0
    stddev = bounds.dealer_stddev(
        Fraction(plan.noise_multiplier) * Fraction(plan.sensitivity) * bound,
        dealers=quorum,
        threshold=plan.threshold,
    )
    return quorum, stddev
