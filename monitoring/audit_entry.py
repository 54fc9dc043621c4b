"""One finished round as the audit log tells it, and the canonical line it becomes.

A line is a JSON object in ASCII with sorted keys and no spaces:

    accepted, at, decision, details, device_ids, model_version, privacy_spent, reason, rejected,
    round_id, task      what happened
    prev_hash           `hash` of the line before; 64 zeros in the first line
    hash                SHA-256 of the line without `hash` and `mac`
    mac                 HMAC-SHA256 of `hash` under the installation's key

Nothing in it can hold an update: values are short strings, numbers, and lists of short strings.
"""

import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

AuditScalar = str | int | float | bool | None
AuditValue = AuditScalar | tuple[str, ...]

GENESIS_HASH: Final = "0" * 64
MAX_STRING_CHARS: Final = 1_000
# A details object is a handful of numbers; more would be somebody's vector.
MAX_DETAILS: Final = 32

# Half a surrogate pair, in a damaged log, has no UTF-8 form.
_ESCAPE: Final = "backslashreplace"
_PSEUDONYM_CHARS: Final = 16
_PSEUDONYM_LABEL: Final = b"fedagg audit pseudonym\x00"
_MAC_LABEL: Final = b"fedagg audit line\x00"


class AuditError(ValueError):
    """An entry may not be logged, or a log cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One finished round.

    Attributes:
        task: task name.
        round_id: number of the round within the task, from 1.
        decision: what became of the round, such as "PUBLISHED".
        reason: why, in words; may be empty.
        model_version: version published; None where none was.
        accepted: contributions in the aggregate, from 0.
        rejected: updates refused or left out, from 0.
        device_ids: the contributing devices; the log holds pseudonyms only.
        privacy_spent: the budget spent on this release by name, such as epsilon and delta; None
            where the round gives no such guarantee.
        at_ms: when the round finished, milliseconds since the Unix epoch.
        details: further facts by name.

    Raises:
        AuditError: if a value is of another type, not finite, negative or too long.
    """

    task: str
    round_id: int
    decision: str
    reason: str
    model_version: int | None
    accepted: int
    rejected: int
    device_ids: tuple[str, ...]
    privacy_spent: Mapping[str, float] | None
    at_ms: int
    details: Mapping[str, AuditValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("task", "decision", "reason"):
            _check_string(name, getattr(self, name))
        for name in ("round_id", "accepted", "rejected", "at_ms"):
            _check_count(name, getattr(self, name))
        if self.model_version is not None:
            _check_count("model_version", self.model_version)
        for device_id in self.device_ids:
            _check_string("device_ids", device_id)
        for facts in (self.privacy_spent or {}, self.details):
            if len(facts) > MAX_DETAILS:
                msg = f"an entry takes at most {MAX_DETAILS} facts of a kind, got {len(facts)}"
                raise AuditError(msg)
        for name, amount in (self.privacy_spent or {}).items():
            if type(amount) not in {int, float}:
                msg = f"privacy_spent[{name!r}] must be a number, got {type(amount).__name__}"
                raise AuditError(msg)
            _check_value(name, amount)
        for name, value in self.details.items():
            _check_value(name, value)


@dataclass(frozen=True, slots=True)
class AuditKey:
    """The installation's secret: makes pseudonyms and line codes. Its repr shows nothing."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != hashlib.sha256().digest_size:
            msg = f"an audit key has 32 bytes, got {len(self.secret)}"
            raise AuditError(msg)

    def pseudonym(self, device_id: str) -> str:
        """Return 16 hex digits that stand for a device: always the same, not to be reversed.

        Two of a million devices share one with probability 3e-8.
        """
        return self._hmac(_PSEUDONYM_LABEL, device_id.encode(errors=_ESCAPE))[:_PSEUDONYM_CHARS]

    def line_mac(self, line_hash: str) -> str:
        """Return the code of a line with this hash."""
        return self._hmac(_MAC_LABEL, line_hash.encode(errors=_ESCAPE))

    def _hmac(self, label: bytes, message: bytes) -> str:
        return hmac.digest(self.secret, label + message, "sha256").hex()


def render_line(entry: AuditEntry, *, key: AuditKey, prev_hash: str) -> bytes:
    """Return the entry's line, newline included."""
    content = {
        "accepted": entry.accepted,
        "at": _rfc3339(entry.at_ms),
        "decision": entry.decision,
        "details": dict(entry.details),
        "device_ids": sorted(key.pseudonym(device_id) for device_id in entry.device_ids),
        "model_version": entry.model_version,
        "prev_hash": prev_hash,
        "privacy_spent": None if entry.privacy_spent is None else dict(entry.privacy_spent),
        "reason": entry.reason,
        "rejected": entry.rejected,
        "round_id": entry.round_id,
        "task": entry.task,
    }
    line_hash = hashlib.sha256(canonical(content)).hexdigest()
    sealed = {**content, "hash": line_hash, "mac": key.line_mac(line_hash)}
    return canonical(sealed) + b"\n"


def canonical(content: Mapping[str, object]) -> bytes:
    """Return the one JSON encoding of an object that the log uses."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _rfc3339(at_ms: int) -> str:
    seconds, milliseconds = divmod(at_ms, 1_000)
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def _check_string(name: str, value: object) -> None:
    if type(value) is not str or len(value) > MAX_STRING_CHARS:
        msg = f"{name} must be a string of at most {MAX_STRING_CHARS} characters"
        raise AuditError(msg)


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        msg = f"{name} must be an integer from 0, got {value!r}"
        raise AuditError(msg)


def _check_value(name: str, value: object) -> None:
    _check_string("the name of a fact", name)
    match value:
        case str():
            _check_string(name, value)
        case bool() | int() | None:
            pass
        case float() if math.isfinite(value):
            pass
        case list() | tuple():
            for item in value:
                _check_string(name, item)
        case _:
            # The value itself stays out of the message: it may be an update.
            msg = f"{name} must be a finite number, a string or strings, got {type(value).__name__}"
            raise AuditError(msg)
