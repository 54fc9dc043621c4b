"""The share holders of one committee: who they are, which keys they have, how many must meet.

An operator writes a committee down once, as JSON, and gives the same file to the coordinator, the
holders and the devices. Its SHA-256 stands in the parameters of every round. Addresses are not
hashed: a holder is known by its keys and may move.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final

from security.errors import MalformedMessageError
from security.secret_sharing.threshold import MAX_HOLDERS, MIN_THRESHOLD

SIGNING_KEY_BYTES: Final = 32
# ML-KEM-768 encapsulation key, then X25519 public key.
SEALING_KEY_BYTES: Final = 1184 + 32

_VERSION: Final = 1
_MAX_NAME_CHARS: Final = 64
_MAX_ADDRESS_CHARS: Final = 256
_MAX_FILE_BYTES: Final = 64 * 1024
_LABEL: Final = b"fedagg/committee/1\0"
_COMMITTEE_FIELDS: Final = frozenset({"version", "threshold", "holders"})
_HOLDER_FIELDS: Final = frozenset({"index", "name", "address", "signing_key", "sealing_key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderIdentity:
    """One share holder as the others know it.

    Attributes:
        index: its evaluation point, 1 to 7.
        name: for people, 1 to 64 characters.
        address: host:port, at most 256 characters; empty where nobody calls it.
        signing_key: Ed25519 public key, 32 bytes.
        sealing_key: ML-KEM-768 encapsulation key and X25519 public key, 1216 bytes.
    """

    index: int
    name: str
    address: str
    signing_key: bytes
    sealing_key: bytes

    def __post_init__(self) -> None:
        if not 1 <= self.index <= MAX_HOLDERS:
            msg = f"index={self.index} must satisfy 1 <= index <= {MAX_HOLDERS}"
            raise MalformedMessageError(msg)
        if not 1 <= len(self.name) <= _MAX_NAME_CHARS or not self.name.isprintable():
            msg = f"name={self.name[:100]!r} must be 1 to {_MAX_NAME_CHARS} printable characters"
            raise MalformedMessageError(msg)
        if len(self.address) > _MAX_ADDRESS_CHARS or not self.address.isprintable():
            msg = f"address must be at most {_MAX_ADDRESS_CHARS} printable characters"
            raise MalformedMessageError(msg)
        if len(self.signing_key) != SIGNING_KEY_BYTES:
            msg = f"signing_key must have {SIGNING_KEY_BYTES} bytes, got {len(self.signing_key)}"
            raise MalformedMessageError(msg)
        if len(self.sealing_key) != SEALING_KEY_BYTES:
            msg = f"sealing_key must have {SEALING_KEY_BYTES} bytes, got {len(self.sealing_key)}"
            raise MalformedMessageError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committee:
    """All holders of one committee, in the order of their indices.

    Attributes:
        threshold: shares that open a sum, 2 to the number of holders.
        holders: 2 to 7, with indices 1, 2, ... and no name or key twice.
    """

    threshold: int
    holders: tuple[HolderIdentity, ...]

    def __post_init__(self) -> None:
        indices = [holder.index for holder in self.holders]
        if not MIN_THRESHOLD <= len(indices) <= MAX_HOLDERS or indices != list(
            range(1, len(indices) + 1)
        ):
            msg = f"holders must have indices 1 to n, 2 <= n <= {MAX_HOLDERS}, got {indices}"
            raise MalformedMessageError(msg)
        if not MIN_THRESHOLD <= self.threshold <= len(indices):
            msg = (
                f"threshold={self.threshold} must satisfy 2 <= threshold <= n, got n={len(indices)}"
            )
            raise MalformedMessageError(msg)
        for kind in ("name", "signing_key", "sealing_key"):
            if len({getattr(holder, kind) for holder in self.holders}) != len(indices):
                msg = f"holders must differ in {kind}"
                raise MalformedMessageError(msg)

    @property
    def sha256(self) -> bytes:
        """Return the 32 bytes that a round's parameters name. Addresses have no part in them."""
        return hashlib.sha256(_LABEL + _encode(self, with_addresses=False)).digest()

    def identity(self, index: int) -> HolderIdentity:
        """Return a holder.

        Raises:
            MalformedMessageError: if the committee has no such holder.
        """
        if not 1 <= index <= len(self.holders):
            msg = f"holder={index} must satisfy 1 <= holder <= {len(self.holders)}"
            raise MalformedMessageError(msg)
        return self.holders[index - 1]


def dump_committee(committee: Committee) -> bytes:
    """Return the committee as JSON; the same bytes for equal committees."""
    return _encode(committee, with_addresses=True)


def load_committee(data: bytes) -> Committee:
    """Read what `dump_committee` wrote; people may have changed the layout.

    Raises:
        MalformedMessageError: if it is not a committee of this version, or lacks or adds a field.
    """
    if len(data) > _MAX_FILE_BYTES:
        msg = f"a committee must have at most {_MAX_FILE_BYTES} bytes, got {len(data)}"
        raise MalformedMessageError(msg)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = "a committee must be a JSON document"
        raise MalformedMessageError(msg) from error
    fields = _object(document, _COMMITTEE_FIELDS, of="a committee")
    if _integer(fields, "version") != _VERSION:
        msg = f"version={fields['version']!r} of a committee must be {_VERSION}"
        raise MalformedMessageError(msg)
    holders = fields["holders"]
    if not isinstance(holders, list):
        msg = f"holders must be a list, got {type(holders).__name__}"
        raise MalformedMessageError(msg)
    return Committee(
        threshold=_integer(fields, "threshold"),
        holders=tuple(_holder(_object(item, _HOLDER_FIELDS, of="a holder")) for item in holders),
    )


def _encode(committee: Committee, *, with_addresses: bool) -> bytes:
    holders = [
        {
            "index": holder.index,
            "name": holder.name,
            "signing_key": base64.b64encode(holder.signing_key).decode("ascii"),
            "sealing_key": base64.b64encode(holder.sealing_key).decode("ascii"),
        }
        | ({"address": holder.address} if with_addresses else {})
        for holder in committee.holders
    ]
    document = {"version": _VERSION, "threshold": committee.threshold, "holders": holders}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _holder(fields: dict[str, object]) -> HolderIdentity:
    return HolderIdentity(
        index=_integer(fields, "index"),
        name=_text(fields, "name"),
        address=_text(fields, "address"),
        signing_key=_key(fields, "signing_key"),
        sealing_key=_key(fields, "sealing_key"),
    )


def _object(value: object, names: frozenset[str], *, of: str) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != names:
        msg = f"{of} must be an object with the fields {sorted(names)}"
        raise MalformedMessageError(msg)
    return value


def _integer(fields: dict[str, object], name: str) -> int:
    value = fields[name]
    # bool is an int to Python, and `true` is no number here.
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name} must be an integer, got {type(value).__name__}"
        raise MalformedMessageError(msg)
    return value


def _text(fields: dict[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        msg = f"{name} must be a string, got {type(value).__name__}"
        raise MalformedMessageError(msg)
    return value


def _key(fields: dict[str, object], name: str) -> bytes:
    try:
        return base64.b64decode(_text(fields, name), validate=True)
    except (ValueError, binascii.Error) as error:
        msg = f"{name} must be base64"
        raise MalformedMessageError(msg) from error


_PREFIX: Final = "noise:"


_DEALER: Final = re.compile(rf"{_PREFIX}([1-{MAX_HOLDERS}])")


def dealer_id(holder: int) -> str:
    """Name a holder's noise among the devices of a round."""
    return f"{_PREFIX}{holder}"


def is_dealer(device_id: str) -> bool:
    """Tell whether the name is kept for dealers, whatever follows the colon."""
    return device_id.startswith(_PREFIX)


def dealer_of(device_id: str) -> int:
    """Tell which holder deals under this name; 0: none does."""
    found = _DEALER.fullmatch(device_id)
    return int(found[1]) if found else 0
