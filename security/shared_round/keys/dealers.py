"""Share holders that deal noise: their names among devices, and their signatures on headers.

A dealer's noise travels as a device's update does, under the name `noise:<holder>`. No certificate
can hold a colon in a device id, so no device has such a name. Its header is signed with the
holder's own key and comes without a certificate: the committee says whose key that is.
"""

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadHeaderSignatureError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import HEADER_LABEL, VerifiedHeader, read_header
from security.shared_round.terms.committee import Committee, dealer_id, dealer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DealerSigner:
    """A holder's key as the signer of its noise's header.

    Attributes:
        holder: its index.
        secrets: its keys.
    """

    holder: int
    secrets: HolderSecrets = field(repr=False)

    @property
    def device_id(self) -> str:
        """Name that the header carries."""
        return dealer_id(self.holder)

    def sign_header(self, header: pb.SharedHeader) -> pb.SignedHeader:
        """Sign a header as this holder; the same bytes for the same header."""
        data = header.SerializeToString(deterministic=True)
        return pb.SignedHeader(header=data, signature=self.secrets.sign(HEADER_LABEL + data))


def verify_dealer(signed: pb.SignedHeader, committee: Committee) -> VerifiedHeader:
    """Return a header that the holder which it names signed.

    Raises:
        BadHeaderSignatureError: if it comes with a certificate, names no holder of the committee,
            or was not signed by that holder.
        MalformedMessageError: if what was signed is not a header.
    """
    if signed.certificate:
        msg = "a dealer's header must come without a certificate"
        raise BadHeaderSignatureError(msg)
    header = read_header(signed)
    holder = dealer_of(header.device_id)
    if not 1 <= holder <= len(committee.holders):
        msg = f"device_id={header.device_id[:100]!r} is no share holder of the committee"
        raise BadHeaderSignatureError(msg)
    key = Ed25519PublicKey.from_public_bytes(committee.identity(holder).signing_key)
    try:
        key.verify(signed.signature, HEADER_LABEL + signed.header)
    except InvalidSignature as error:
        msg = f"the header of noise was not signed by holder {holder}"
        raise BadHeaderSignatureError(msg) from error
    return VerifiedHeader(
        device_id=header.device_id,
        header=header,
        header_sha256=hashlib.sha256(signed.header).digest(),
    )
