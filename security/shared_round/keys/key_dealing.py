"""The keys that holders of a committee share, so that they can make common randomness.

Every set A of threshold - 1 holders has a key k_A that exactly the holders outside A know: with
them all holders derive sharings of random values that nobody chose (Cramer, Damgard, Ishai, TCC
2005, section 3). The lowest holder outside A deals k_A to the others and to itself. It derives

    k_A = HMAC-SHA256(dealing seed, "fedagg/replicated-key/1\\0" || committee || A)

so that it deals the same key whenever it is asked.
"""

import hmac
import struct
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import BadStatementError, SealBrokenError
from security.secret_sharing.threshold import Threshold
from security.shared_round.keys.holder_keys import HolderSecrets, seal_to
from security.shared_round.terms.committee import Committee

KEY_BYTES: Final = 32

_KEY_LABEL: Final = b"fedagg/replicated-key/1\0"
_SEAL_LABEL: Final = b"fedagg/dealt-key/1\0"
_SIGNATURE_LABEL: Final = b"fedagg/dealt-key-signature/1\0"


def deal_keys(secrets: HolderSecrets, committee: Committee, holder: int) -> list[pb.SealedKey]:
    """Seal and sign the keys that this holder deals, its own copies included.

    Args:
        secrets: the dealer's.
        committee: to whom.
        holder: the dealer's index.

    Raises:
        MalformedMessageError: if the committee has no such holder, or one of its sealing keys is
            no public key.

    Guarantees:
        The keys are the same on every call; the seals are not, but all of them open.

    Cost: about 0.2 ms a key and recipient.
    """
    committee.identity(holder)
    keys = []
    for excluded in _scheme(committee).excluded_sets:
        recipients = _members(committee, excluded)
        if recipients[0] == holder:
            keys += [_deal(secrets, committee, recipient, excluded) for recipient in recipients]
    return keys


def accept_keys(
    secrets: HolderSecrets, committee: Committee, holder: int, sealed: Iterable[pb.SealedKey]
) -> dict[tuple[int, ...], bytes]:
    """Open the keys that were dealt to this holder; those of others are passed over.

    Args:
        secrets: the recipient's.
        committee: who may deal what.
        holder: the recipient's index.
        sealed: of any dealers, to any recipients, in any order, repeated or not.

    Returns:
        The keys by the ascending set of holders that lack them, 32 bytes each. The committee's
        scheme tells which are still missing.

    Raises:
        BadStatementError: if a key for this holder is dealt by a holder who may not, signed by
            another, for a set that the committee does not have, or differs from one before it.
        SealBrokenError: if one does not open.
    """
    committee.identity(holder)
    keys: dict[tuple[int, ...], bytes] = {}
    for grant in sealed:
        if grant.recipient != holder:
            continue
        excluded = tuple(grant.excluded)
        _check_grant(committee, grant)
        key = secrets.unseal(grant.sealed, _info(_SEAL_LABEL, committee, grant))
        if len(key) != KEY_BYTES:
            msg = f"a dealt key must have {KEY_BYTES} bytes, got {len(key)}"
            raise SealBrokenError(msg)
        if not hmac.compare_digest(keys.setdefault(excluded, key), key):
            msg = f"holder {grant.dealer} dealt two keys for the set without {excluded}"
            raise BadStatementError(msg)
    return keys


def _deal(
    secrets: HolderSecrets, committee: Committee, recipient: int, excluded: tuple[int, ...]
) -> pb.SealedKey:
    label = _KEY_LABEL + committee.sha256 + struct.pack(f"<{len(excluded)}I", *excluded)
    key = hmac.digest(secrets.dealing_seed, label, "sha256")
    dealer = _members(committee, excluded)[0]
    grant = pb.SealedKey(dealer=dealer, recipient=recipient, excluded=excluded)
    identity = committee.identity(recipient)
    grant.sealed = seal_to(identity, key, _info(_SEAL_LABEL, committee, grant))
    grant.signature = secrets.sign(_info(_SIGNATURE_LABEL, committee, grant) + grant.sealed)
    return grant


def _check_grant(committee: Committee, grant: pb.SealedKey) -> None:
    excluded = tuple(grant.excluded)
    if excluded not in _scheme(committee).excluded_sets or grant.recipient in excluded:
        msg = f"no key of the set without {excluded} is for holder {grant.recipient}"
        raise BadStatementError(msg)
    dealer = _members(committee, excluded)[0]
    if grant.dealer != dealer:
        msg = f"the key of the set without {excluded} must be dealt by {dealer}, not {grant.dealer}"
        raise BadStatementError(msg)
    key = Ed25519PublicKey.from_public_bytes(committee.identity(dealer).signing_key)
    try:
        key.verify(grant.signature, _info(_SIGNATURE_LABEL, committee, grant) + grant.sealed)
    except InvalidSignature as error:
        msg = f"the key of the set without {excluded} was not signed by holder {dealer}"
        raise BadStatementError(msg) from error


def _info(label: bytes, committee: Committee, grant: pb.SealedKey) -> bytes:
    """Return what binds a grant to its committee, dealer, recipient and set: of fixed length."""
    excluded = tuple(grant.excluded)
    fields = struct.pack(f"<{2 + len(excluded)}I", grant.dealer, grant.recipient, *excluded)
    return label + committee.sha256 + fields


def _members(committee: Committee, excluded: tuple[int, ...]) -> list[int]:
    """Return the holders outside a set, ascending."""
    return [holder.index for holder in committee.holders if holder.index not in excluded]


def _scheme(committee: Committee) -> Threshold:
    return Threshold(committee.threshold, len(committee.holders))
