"""What is kept of a plain round so that its version can be built again: a file by the payloads.

    offset  bytes   what
    0       8       length of the JSON text, little-endian
    8       ...     JSON: `settings`, `compression`, `base_version`, `contributions`
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
from server.storage.ports import Contribution
from updates import plan_message
from updates.errors import CompressionError
from updates.plan import CompressionPlan

_LENGTH: Final = struct.Struct("<Q")


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
        contributions = tuple(
            Contribution(**{**each, "digest": bytes.fromhex(each["digest"])})
            for each in about["contributions"]
        )
        return KeptRound(
            base_version=about["base_version"],
            settings=_settings(about["settings"]),
            compression=_compression(about["compression"]),
            contributions=contributions,
            inline_payloads=_cut(data[start:], contributions),
        )
    except (struct.error, LookupError, TypeError, ValueError, CompressionError) as error:
        msg = f"the file of a kept round is damaged: {error}"
        raise AggregationError(msg) from error


def _settings(tree: dict[str, Any]) -> IntegratedConfig:
    byzantine = tree["byzantine"]
    aggregator = AggregatorConfig(**byzantine["aggregator"])
    return IntegratedConfig(
        byzantine=ByzantineConfig(**{**byzantine, "aggregator": aggregator}),
        optimizer=ServerOptimizerConfig(**tree["optimizer"]),
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
