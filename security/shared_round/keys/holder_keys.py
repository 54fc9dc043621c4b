"""The secrets of one share holder: what it signs with, what devices seal to, what it deals.

HPKE (RFC 9180) with X-Wing's parts, ML-KEM-768 and X25519, HKDF-SHA256 and AES-256-GCM: a seal
holds as long as one of the two key exchanges does.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from security.errors import MalformedMessageError, SealBrokenError
from security.shared_round.terms.committee import SEALING_KEY_BYTES, HolderIdentity

# Bytes that a seal adds to its plaintext: the encapsulated key and the authentication tag.
SEAL_OVERHEAD_BYTES: Final = KEM.MLKEM768_X25519.enc_length() + 16

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_VERSION: Final = 1
_SEED_BYTES: Final = {"signing_seed": 32, "mlkem_seed": 64, "x25519_seed": 32, "dealing_seed": 32}
_X25519_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderSecrets:
    """Everything secret that a holder keeps for years. Its repr shows nothing of it.

    Attributes:
        signing_seed: Ed25519 private key, 32 bytes.
        mlkem_seed: seed of the ML-KEM-768 key, 64 bytes.
        x25519_seed: X25519 private key, 32 bytes.
        dealing_seed: the replicated keys that this holder deals derive from it, 32 bytes.
    """

    signing_seed: bytes = field(repr=False)
    mlkem_seed: bytes = field(repr=False)
    x25519_seed: bytes = field(repr=False)
    dealing_seed: bytes = field(repr=False)
    _signing_key: Ed25519PrivateKey = field(init=False, repr=False, compare=False)
    _mlkem_key: MLKEM768PrivateKey = field(init=False, repr=False, compare=False)
    _x25519_key: X25519PrivateKey = field(init=False, repr=False, compare=False)
    _sealing_key: MLKEM768X25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, size in _SEED_BYTES.items():
            if len(getattr(self, name)) != size:
                msg = f"{name} must have {size} bytes, got {len(getattr(self, name))}"
                raise MalformedMessageError(msg)
        mlkem_key = MLKEM768PrivateKey.from_seed_bytes(self.mlkem_seed)
        x25519_key = X25519PrivateKey.from_private_bytes(self.x25519_seed)
        signing_key = Ed25519PrivateKey.from_private_bytes(self.signing_seed)
        object.__setattr__(self, "_signing_key", signing_key)
        object.__setattr__(self, "_mlkem_key", mlkem_key)
        object.__setattr__(self, "_x25519_key", x25519_key)
        object.__setattr__(self, "_sealing_key", MLKEM768X25519PrivateKey(mlkem_key, x25519_key))

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> "HolderSecrets":
        """Make the secrets of a new holder from 160 random bytes."""
        return cls(**{name: random_bytes(size) for name, size in _SEED_BYTES.items()})

    @classmethod
    def from_json(cls, data: bytes) -> "HolderSecrets":
        """Read what `to_json` wrote.

        Raises:
            MalformedMessageError: if it is anything else. The message quotes none of it.
        """
        try:
            document = json.loads(data)
            if document.pop("version") != _VERSION or document.keys() != _SEED_BYTES.keys():
                raise KeyError
            seeds = {name: base64.b64decode(text, validate=True) for name, text in document.items()}
        except (ValueError, binascii.Error, KeyError, TypeError, AttributeError):
            msg = f"a holder's secrets must be a JSON object of version {_VERSION}"
            # Without the cause: its text would quote the secret.
            raise MalformedMessageError(msg) from None
        return cls(**seeds)

    def to_json(self) -> bytes:
        """Return the secrets as JSON, not encrypted."""
        seeds = {
            name: base64.b64encode(getattr(self, name)).decode("ascii") for name in _SEED_BYTES
        }
        return json.dumps({"version": _VERSION} | seeds, indent=2).encode("ascii") + b"\n"

    def identity(self, *, index: int, name: str, address: str) -> HolderIdentity:
        """Return what the others know of this holder.

        Raises:
            MalformedMessageError: if an argument is out of range.
        """
        return HolderIdentity(
            index=index,
            name=name,
            address=address,
            signing_key=self._signing_key.public_key().public_bytes_raw(),
            sealing_key=self._mlkem_key.public_key().public_bytes_raw()
            + self._x25519_key.public_key().public_bytes_raw(),
        )

    def owns(self, identity: HolderIdentity) -> bool:
        """Tell whether both keys of the identity are this holder's."""
        return identity == self.identity(
            index=identity.index, name=identity.name, address=identity.address
        )

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature, 64 bytes; the same for the same data."""
        return self._signing_key.sign(data)

    def unseal(self, ciphertext: bytes, info: bytes) -> bytes:
        """Open what was sealed to this holder under this info.

        Raises:
            SealBrokenError: if it was sealed to another key or under other info, or was changed.
        """
        try:
            return _SUITE.decrypt(ciphertext, self._sealing_key, info)
        except (InvalidTag, ValueError) as error:
            msg = "the sealed part does not open with this holder's key for this context"
            raise SealBrokenError(msg) from error


def seal_to(identity: HolderIdentity, plaintext: bytes, info: bytes) -> bytes:
    """Seal to a holder; different bytes on every call.

    Args:
        identity: who can open it.
        plaintext: any bytes.
        info: the context it is bound to; the opener must give the same.

    Returns:
        `len(plaintext) + SEAL_OVERHEAD_BYTES` bytes.

    Raises:
        MalformedMessageError: if the identity's sealing key is no public key.

    Cost: about 150 us.
    """
    try:
        return _SUITE.encrypt(plaintext, _public_key(identity.sealing_key), info)
    except ValueError as error:
        msg = f"the sealing key of holder {identity.index} is not a public key"
        raise MalformedMessageError(msg) from error


def _public_key(data: bytes) -> MLKEM768X25519PublicKey:
    split = SEALING_KEY_BYTES - _X25519_BYTES
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(data[:split]),
        X25519PublicKey.from_public_bytes(data[split:]),
    )
