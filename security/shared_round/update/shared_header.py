"""The signed header of an update: whether it belongs to a round and has the round's form."""

from collections.abc import Sequence
from typing import Final

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import MalformedMessageError, WrongRoundParametersError
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.sealing import KEY_BYTES, NONCE_BYTES

_DIGEST_BYTES: Final = 32
_MAX_DEVICE_ID_BYTES: Final = 256


def check_header(params: RoundParameters, header: pb.SharedHeader) -> None:
    """Check that a header fits a round; who signed it, and what it commits to, is not checked.

    Raises:
        WrongRoundParametersError: if it was made for other parameters, or from a model version
            that the round does not take.
        MalformedMessageError: if a field has the wrong form or number.
    """
    if header.params_sha256 != params.sha256:
        msg = f"params_sha256={header.params_sha256.hex()[:64]} must be {params.sha256.hex()}"
        raise WrongRoundParametersError(msg)
    params.staleness_weight(header.model_version)
    if not 1 <= len(header.device_id.encode()) <= _MAX_DEVICE_ID_BYTES:
        msg = f"device_id must have 1 to {_MAX_DEVICE_ID_BYTES} bytes"
        raise MalformedMessageError(msg)
    if len(header.nonce) != NONCE_BYTES:
        msg = f"nonce must have {NONCE_BYTES} bytes, got {len(header.nonce)}"
        raise MalformedMessageError(msg)
    _check_digests("frame_sha256", header.frame_sha256, count=params.holders)
    _check_digests("body_sha256", header.body_sha256, count=params.num_bodies)
    sharing = params.sharing
    num_pieces = sharing.num_seeds + sharing.num_bodies if sharing.names_pieces else 0
    _check_digests("piece_sha256", header.piece_sha256, count=num_pieces)


def frame_plaintext_bytes(params: RoundParameters, holder: int) -> int:
    """Return the length of what is sealed to a holder: a key for each piece it holds."""
    return KEY_BYTES * len(params.sharing.keys_of(holder))


def _check_digests(name: str, digests: Sequence[bytes], *, count: int) -> None:
    if len(digests) != count or any(len(digest) != _DIGEST_BYTES for digest in digests):
        msg = f"{name} must hold {count} digests of {_DIGEST_BYTES} bytes"
        raise MalformedMessageError(msg)
