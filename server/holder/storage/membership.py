"""Who this holder is, and the rounds it knows: what every call needs first."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceAuthority, sign_statement
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameters import RoundParameters
from server.errors import UnknownRound
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import RoundRow

_KNOWN_ROUNDS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderSelf:
    """One member of a committee.

    Attributes:
        index: its evaluation point.
        secrets: its keys.
        committee: all members.
        authority: whose device certificates count.
        now_s: the clock that certificates are held against, seconds since the Unix epoch.
    """

    index: int
    secrets: HolderSecrets = field(repr=False)
    committee: Committee
    authority: DeviceAuthority
    now_s: Callable[[], float]

    def speaker(self, params_sha256: bytes) -> Speaker:
        """Return what builds this holder's statements of a round."""
        return Speaker(params_sha256=params_sha256, holder=self.index)

    def sign(self, statement: pb.HolderStatement) -> bytes:
        """Sign a statement; a serialized SignedStatement, the same for the same statement."""
        return serialize(sign_statement(self.secrets, statement))


class KnownRounds:
    """The rounds that were opened here; parameters do not change, so they are remembered."""

    def __init__(self, storage: HolderStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._parameters: OrderedDict[bytes, RoundParameters] = OrderedDict()

    def parameters(self, params_sha256: bytes) -> RoundParameters:
        """Return the parameters of a round.

        Raises:
            UnknownRound: if it was not opened here.
        """
        with self._lock:
            known = self._parameters.get(params_sha256)
            if known is not None:
                self._parameters.move_to_end(params_sha256)
                return known
        params = RoundParameters.from_bytes(self.row(params_sha256).parameters)
        with self._lock:
            self._parameters[params_sha256] = params
            if len(self._parameters) > _KNOWN_ROUNDS:
                self._parameters.popitem(last=False)
        return params

    def row(self, params_sha256: bytes) -> RoundRow:
        """Return a round as it is stored.

        Raises:
            UnknownRound: if it was not opened here.
        """
        return require_round(
            self._storage.read(lambda ledger: ledger.round(params_sha256)), params_sha256
        )


def require_round(row: RoundRow | None, params_sha256: bytes) -> RoundRow:
    """Return the row.

    Raises:
        UnknownRound: if there is none.
    """
    if row is None:
        msg = f"no round with params_sha256={params_sha256.hex()[:64]} was opened here"
        raise UnknownRound(msg)
    return row


def serialize(message: Message) -> bytes:
    """Return the message's bytes, the same for equal messages."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data
