"""The keys that this holder shares with others of its committee: dealt once, kept sealed."""

import threading
from collections.abc import Iterable, Sequence

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.secret_sharing.threshold import Threshold
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.key_dealing import accept_keys, deal_keys
from security.shared_round.terms.committee import Committee
from server.errors import KeysMissing
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger


class Keyring:
    """Deals, takes and keeps replicated keys. For any number of threads.

    At rest the keys are sealed to this holder; they are open in memory only.

    Args:
        secrets: the holder's.
        committee: whose member it is.
        holder: its index.
        storage: where sealed keys are kept; the holder's own are dealt here at first use.
    """

    def __init__(
        self, secrets: HolderSecrets, committee: Committee, holder: int, storage: HolderStorage
    ) -> None:
        self._secrets = secrets
        self._committee = committee
        self._holder = holder
        self._storage = storage
        self._scheme = Threshold(committee.threshold, len(committee.holders))
        self._lock = threading.Lock()
        self._keys: dict[tuple[int, ...], bytes] = {}
        self._dealt = self._deal()
        stored = storage.read(lambda ledger: ledger.keys())
        self.accept([*map(pb.SealedKey.FromString, stored), *self._dealt])

    @property
    def dealt(self) -> list[pb.SealedKey]:
        """What this holder deals, the same bytes for ever."""
        return self._dealt

    @property
    def is_complete(self) -> bool:
        """True when every key is here that the committee shares with this holder."""
        return self._replicated().is_complete

    def keys(self) -> ReplicatedKeys:
        """Return all keys of this holder.

        Raises:
            KeysMissing: if others have not dealt theirs yet.
        """
        replicated = self._replicated()
        if not replicated.is_complete:
            msg = f"holder {self._holder} has {len(self._keys)} keys and lacks others"
            raise KeysMissing(msg)
        return replicated

    def accept(self, grants: Iterable[pb.SealedKey]) -> bool:
        """Take the keys that were dealt to this holder; durable when it returns.

        Returns:
            `is_complete`.

        Raises:
            BadStatementError: if one is forged, or not the one that its dealer dealt before.
            SealBrokenError: if one does not open.
        """
        mine = [grant for grant in grants if grant.recipient == self._holder]
        opened = accept_keys(self._secrets, self._committee, self._holder, mine)
        with self._lock:
            new = [grant for grant in mine if tuple(grant.excluded) not in self._keys]
            if len(new) < len(mine):
                known = self._storage.read(lambda ledger: ledger.keys())
                stored = [pb.SealedKey.FromString(data) for data in known]
                # Together, so that a dealer who deals a second key is refused.
                accept_keys(self._secrets, self._committee, self._holder, [*stored, *mine])
            self._store(new)
            self._keys = {**opened, **self._keys}
        return self.is_complete

    def _store(self, grants: Sequence[pb.SealedKey]) -> None:
        def change(ledger: Ledger) -> None:
            for grant in grants:
                ledger.keep_key(_name(grant.excluded), grant.SerializeToString())

        if grants:
            self._storage.write(change)

    def _deal(self) -> list[pb.SealedKey]:
        stored = self._storage.read(lambda ledger: ledger.dealt())
        if stored is None:
            grants = deal_keys(self._secrets, self._committee, self._holder)
            fresh = pb.DealKeysResponse(keys=grants).SerializeToString()
            stored = self._storage.write(lambda ledger: ledger.keep_dealt(fresh))
        return list(pb.DealKeysResponse.FromString(stored).keys)

    def _replicated(self) -> ReplicatedKeys:
        return ReplicatedKeys(self._scheme, self._holder, self._keys)


def _name(excluded: Iterable[int]) -> str:
    return ",".join(map(str, excluded))
