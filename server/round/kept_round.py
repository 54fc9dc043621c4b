"""What is kept of a plain round so that its version can be built again: a file by the payloads.

    offset  bytes   what
    0       8       length of the JSON text, little-endian
    8       ...     JSON: `format`, `settings`, `compression`, `base_version`, `contributions`
    ...             payloads that lay in the round store, in the order of the contributions

Large payloads stay where they were stored. The settings are the round's own: a task may have others
by the time the round is replayed.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from aggregators.byzantine import ByzantineConfig
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.integrated import IntegratedConfig
from aggregators.server_optimizer import ServerOptimizerConfig
from server.round.ports import Contribution
from updates import plan_message
from updates.compression_plan import CompressionPlan

FORMAT: Final = 1
"""Counts the releases whose settings or files mean something else; others cannot replay a round."""

_LENGTH: Final = struct.Struct("<Q")


_MALFORMED: Final = (
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRound:
    """What a round was built from, beside the files of its base version.

    Attributes:
        base_version: that it trained from.
        settings: rule and server optimizer.
        compression: of the round; None: updates are dense.
        contributions: admitted updates.
        inline_payloads: of those that are `inline`, in their order.
    """

    base_version: int
    settings: IntegratedConfig
    compression: CompressionPlan | None
    contributions: tuple[Contribution, ...]
    inline_payloads: tuple[bytes, ...]

    def __post_init__(self) -> None:
        """Refuse payloads that are not those of the contributions."""
        lengths = [each.payload_bytes for each in self.contributions if each.inline]
        if lengths != [len(payload) for payload in self.inline_payloads]:
            msg = f"inline_payloads must have the lengths {lengths[:5]}... that were admitted"
            raise AggregationError(msg)


def encode_kept_round(kept: KeptRound) -> bytes:
    """Write a round; the same round gives the same bytes."""
    compression = None
    if kept.compression is not None:
        plan = plan_message.to_bytes(kept.compression)
        compression = {"plan": plan.hex(), "dim": kept.compression.dim}
    about = {
        "format": FORMAT,
        "base_version": kept.base_version,
        "settings": asdict(kept.settings),
        "compression": compression,
        "contributions": [
            asdict(each) | {"digest": each.digest.hex()} for each in kept.contributions
        ],
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *kept.inline_payloads))


def decode_kept_round(data: bytes) -> KeptRound:
    """Read a round.

    Raises:
        AggregationError: if `data` is not what `encode_kept_round` wrote.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        about = json.loads(data[_LENGTH.size : start])
        if about["format"] != FORMAT:
            msg = f"format={about['format']!r:.20} of a kept round must be {FORMAT}"
            raise AggregationError(msg)
        contributions = tuple(_contribution(each) for each in about["contributions"])
        return KeptRound(
            base_version=_whole(about["base_version"]),
            settings=_settings(about["settings"]),
            compression=_compression(about["compression"]),
            contributions=contributions,
            inline_payloads=_cut(data[start:], contributions),
        )
    except AggregationError:
        raise
    except _MALFORMED as error:
        msg = f"the file of a kept round is damaged: {error}"
        raise AggregationError(msg) from error


def _contribution(tree: dict[str, Any]) -> Contribution:
    for name in ("device_id", "submission_id"):
        if type(tree[name]) is not str:
            msg = f"{name}={tree[name]!r:.40} must be a text"
            raise TypeError(msg)
    for name in ("num_samples", "payload_bytes", "accepted_at_ms", "model_version"):
        _whole(tree[name])
    for name in ("loss_before", "loss_after"):
        if tree[name] is not None and type(tree[name]) is not float:
            msg = f"{name}={tree[name]!r:.40} must be a number"
            raise TypeError(msg)
    return Contribution(**{**tree, "digest": bytes.fromhex(tree["digest"])})


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        msg = f"{value!r:.40} must be a whole number below 2^63"
        raise TypeError(msg)
    return value


def _settings(tree: dict[str, Any]) -> IntegratedConfig:
    byzantine = dict(tree["byzantine"])
    byzantine["aggregator"] = AggregatorConfig(**byzantine["aggregator"])
    optimizer = ServerOptimizerConfig(**tree["optimizer"])
    return IntegratedConfig(
        **{**tree, "byzantine": ByzantineConfig(**byzantine), "optimizer": optimizer}
    )


def _compression(tree: dict[str, Any] | None) -> CompressionPlan | None:
    if tree is None:
        return None
    return plan_message.from_bytes(bytes.fromhex(tree["plan"]), dim=tree["dim"])


def _cut(data: bytes, contributions: Sequence[Contribution]) -> tuple[bytes, ...]:
    expected = sum(each.payload_bytes for each in contributions if each.inline)
    if len(data) != expected:
        msg = f"payloads of {len(data)} bytes must be the {expected} that were admitted"
        raise ValueError(msg)
    payloads, start = [], 0
    for each in contributions:
        if each.inline:
            payloads.append(data[start : start + each.payload_bytes])
            start += each.payload_bytes
    return tuple(payloads)
