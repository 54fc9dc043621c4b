"""Brings every admitted share, and every share of noise, to its holder; knows who has which.

What is relayed twice is answered from what the holder stored, so nothing here needs to be durable:
a new leader lists what the holders have and goes on. Shares that devices handed to the holders
themselves are only listed: what was admitted is then the prefix of the bundle.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from security.errors import SharedRoundError
from security.shared_round.keys.signing import verify_statement
from security.shared_round.opening.statements import read_receipt
from security.shared_round.terms.parameters import RoundParameters
from server.round.observers import SharingObserver
from server.round.ports import AdmissionStore, BlobNotFound, Contribution
from server.round.state import Round
from server.sharing.bundles import PAYLOAD_GONE, Bundle, Bundles
from server.sharing.dealt_noise import DealtNoise
from server.sharing.holders import HolderClient, HolderRefused, refusal_of
from server.sharing.pool import HolderPool
from server.sharing.round_checks import holders_with_noise

BATCH_DEVICES: Final = 64  # whose prefixes and small payloads are in memory at once
SMALL_BYTES: Final = 256 << 10  # bodies up to this travel many in a message
MESSAGE_BYTES: Final = 1 << 20  # of small shares, less than the 2 MiB a holder takes
STREAMS_PER_HOLDER: Final = 2

# A refusal of one share that tells of the device; anything else tells of the holder or the round.
DEVICE_FAULTS: Final = frozenset(
    {
        "MALFORMED_REQUEST",
        "TRUNCATED_STREAM",
        "UPDATE_TOO_LARGE",
        "BAD_HEADER_SIGNATURE",
        "WRONG_ROUND_PARAMETERS",
        "WRONG_HOLDER",
        "SEAL_BROKEN",
        "OUT_OF_RANGE_WORD",
        "COMMITMENT_MISMATCH",
        "SHARE_CONFLICT",
    }
)


class Relay:
    """The shares of one round.

    `run` may be called again and again; it does only what is left. Not for two tasks at once.

    Attributes:
        faults: devices whose share was refused, with the holders' reason, or, where fewer than
            the threshold say so, with the name of the first of them: it may lie.
        refusals: holders that will not take part in the round, with the reason.
        seen: contributions there were when `run` was last called.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        round_: Round,
        params: RoundParameters,
        *,
        pool: HolderPool,
        admission: AdmissionStore,
        bundles: Bundles,
        noise: DealtNoise,
        observer: SharingObserver,
    ) -> None:
        self._round = round_
        self._params = params
        self._pool = pool
        self._admission = admission
        self._bundles = bundles
        self._noise = noise
        self._dealt: dict[int, Bundle] = {}  # by dealer, what is relayed of it
        self._observer = observer
        self._stored: dict[int, dict[str, bytes]] = {}  # holders that know the round
        self._admitted: dict[str, bytes] = {}  # header hashes of the bundles that were opened
        self._direct: set[str] = set()  # devices of those that have no bodies
        self.faults: dict[str, str] = {}
        self._accusers: dict[str, set[int]] = {}  # of devices, holders that refused their share
        self.refusals: dict[int, HolderRefused] = {}
        self.seen = 0

    async def run(self) -> frozenset[int]:
        """Relay what holders lack of the contributions so far.

        Returns:
            Holders that now have every share they do not refuse. Where devices deliver themselves,
            those of the holders that answered with which the most shares count.

        Raises:
            Unavailable: if a store did not answer.
        """
        await self._pool.exchange_keys()
        await self._introduce()
        if self._params.has_noise:
            await self._collect_noise()
            await self._relay_noise()
        contributions = await self._admission.contributions(self._round.task, self._round.number)
        up_to_date = set(self._stored)
        self.seen = len(contributions)
        for start in range(0, len(contributions), BATCH_DEVICES):
            some = contributions[start : start + BATCH_DEVICES]
            up_to_date -= await self._relay_some(some, up_to_date)
        if not self._direct:
            return frozenset(up_to_date)
        up_to_date -= await self._list_again(up_to_date)
        held = {holder: self._direct & self._stored[holder].keys() for holder in up_to_date}
        return best_holders(held, self._params)

    def common(self, holders: frozenset[int]) -> tuple[tuple[str, bytes], ...]:
        """Return devices and header hashes of the shares that all of these holders have, ascending.

        Only of updates that were admitted: anybody may hand a holder a share.
        """
        counts = Counter(
            (device, header)
            for holder in holders
            for device, header in self._stored[holder].items()
            if self._admitted.get(device) == header
        )
        return tuple(sorted(item for item, count in counts.items() if count == len(holders)))

    @property
    def has_all_noise(self) -> bool:
        """Whether every holder has dealt its noise; always without noise."""
        return not self._params.has_noise or len(self._dealt) == len(self._pool.indices)

    def with_noise(
        self, holders: frozenset[int]
    ) -> tuple[frozenset[int], tuple[tuple[str, bytes], ...]]:
        """Pick holders that have the noise of one set of dealers; give its names and hashes too.

        Nobody where the round's noise has not reached a quorum of them.
        """
        held = {
            holder: frozenset(
                dealer
                for dealer, bundle in self._dealt.items()
                if self._stored[holder].get(bundle.device_id) == bundle.header_sha256
            )
            for holder in holders
        }
        chosen, dealers = holders_with_noise(self._params, held)
        bundles = [self._dealt[dealer] for dealer in dealers]
        return chosen, tuple((bundle.device_id, bundle.header_sha256) for bundle in bundles)

    def forget(self, holder: int) -> None:
        """Ask a holder again what it has; it says that it lacks something."""
        self._stored.pop(holder, None)

    async def _introduce(self) -> None:
        """Announce the round to holders that do not know it, and learn what they have."""
        strangers = [holder for holder in self._pool.indices if holder not in self._stored]

        async def introduce(client: HolderClient) -> Sequence[round_pb.SignedStatement]:
            await client.open_round(self._params.to_bytes())
            return await client.list_shares(self._params.sha256)

        answers = await self._pool.ask(introduce, strangers)
        for holder in answers.given:
            self.refusals.pop(holder, None)
        self.refusals.update(answers.refused)
        if any(refusal.reason == "KEYS_MISSING" for refusal in answers.refused.values()):
            self._pool.forget_keys()
        for holder, receipts in answers.given.items():
            self._stored[holder] = {}
            for receipt in receipts:
                self._note_receipt(holder, receipt)

    async def _collect_noise(self) -> None:
        """Get the noise of all holders that know the round and have not dealt it yet."""
        for holder in self._pool.indices:
            if holder not in self._dealt:
                bundle = await self._noise.load(holder)
                if bundle is not None:
                    self._dealt[holder] = bundle
        asked = [holder for holder in self._stored if holder not in self._dealt]
        self._dealt |= (await self._pool.ask(self._noise.fetch, sorted(asked))).given

    async def _relay_noise(self) -> None:
        """Bring every dealer's noise to the holders that lack it; who refuses some is passed by."""
        lacking = {
            holder: [
                bundle
                for bundle in self._dealt.values()
                if bundle.device_id not in stored
                and holder not in self._accusers.get(bundle.device_id, set())
            ]
            for holder, stored in self._stored.items()
        }
        await self._pool.ask(
            lambda client: self._relay_to(client, lacking[client.index]),
            sorted(holder for holder, bundles in lacking.items() if bundles),
        )

    async def _relay_some(
        self, contributions: Sequence[Contribution], holders: set[int]
    ) -> set[int]:
        """Relay a batch to some holders; return those that did not take all of it."""
        wanted = [
            contribution
            for contribution in contributions
            if contribution.device_id not in self.faults
            and contribution.device_id not in self._direct
            and self._is_wanted(contribution.device_id, holders)
        ]
        if not wanted:
            return set()
        bundles, damaged = await self._bundles.load(self._round, self._params, wanted)
        self.faults.update(damaged)
        self._admitted.update({bundle.device_id: bundle.header_sha256 for bundle in bundles})
        self._direct.update(bundle.device_id for bundle in bundles if not bundle.has_bodies)
        tasks = {
            holder: [b for b in bundles if b.has_bodies and b.device_id not in self._stored[holder]]
            for holder in holders
        }
        # `ask` keeps account of who answers; each holder is given its own work.
        answers = await self._pool.ask(
            lambda client: self._relay_to(client, tasks[client.index]), sorted(holders)
        )
        return holders - set(answers.given)

    def _is_wanted(self, device: str, holders: set[int]) -> bool:
        return device not in self._admitted or any(
            device not in self._stored[holder] for holder in holders
        )

    async def _list_again(self, holders: set[int]) -> set[int]:
        """Ask holders that lack shares what they have now; return those that did not answer."""
        lacking = {holder for holder in holders if self._direct - self._stored[holder].keys()}
        answers = await self._pool.ask(
            lambda client: client.list_shares(self._params.sha256), sorted(lacking)
        )
        for holder, refusal in answers.refused.items():
            if refusal.reason == "UNKNOWN_ROUND":
                self.forget(holder)
        for holder, receipts in answers.given.items():
            for receipt in receipts:
                if not self._is_noted(holder, receipt):
                    self._note_receipt(holder, receipt)
        return lacking - set(answers.given)

    def _is_noted(self, holder: int, signed: round_pb.SignedStatement) -> bool:
        """Tell whether a receipt tells nothing new; saves the look at its signature."""
        try:
            receipt = round_pb.HolderStatement.FromString(signed.statement).receipt
        except DecodeError:
            return False
        return self._stored[holder].get(receipt.device_id) == receipt.header_sha256

    async def _relay_to(self, client: HolderClient, bundles: Sequence[Bundle]) -> None:
        small: list[Bundle] = []
        large: list[Bundle] = []
        for bundle in bundles:
            is_small = bundle.start(client.index).body_bytes <= SMALL_BYTES
            (small if is_small else large).append(bundle)
        shares = [await self._whole(bundle, client.index) for bundle in small]
        for message in _messages([share for share in shares if share is not None]):
            await self._store_small(client, message)
        window = asyncio.Semaphore(STREAMS_PER_HOLDER)

        async def one(bundle: Bundle) -> None:
            async with window:
                await self._store_large(client, bundle)

        outcomes = await asyncio.gather(*(one(b) for b in large), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _whole(self, bundle: Bundle, holder: int) -> tuple[str, pb.InlineShare] | None:
        try:
            body = b"".join([chunk async for chunk in bundle.body(holder)])
        except BlobNotFound:
            self.faults[bundle.device_id] = PAYLOAD_GONE
            return None
        return bundle.device_id, pb.InlineShare(start=bundle.start(holder), body=body)

    async def _store_small(
        self, client: HolderClient, shares: Sequence[tuple[str, pb.InlineShare]]
    ) -> None:
        outcomes = await client.store_shares([share for _, share in shares])
        for (device, _), outcome in zip(shares, outcomes, strict=True):
            if outcome.WhichOneof("outcome") == "receipt":
                self._note_stored(client.index, device, outcome.receipt)
            else:
                self._note_refusal(client.index, device, refusal_of(outcome.error))

    async def _store_large(self, client: HolderClient, bundle: Bundle) -> None:
        holder = client.index
        try:
            receipt = await client.store_share(bundle.start(holder), bundle.body(holder))
        except HolderRefused as error:
            self._note_refusal(holder, bundle.device_id, error)
        except BlobNotFound:
            self.faults[bundle.device_id] = PAYLOAD_GONE
        else:
            self._note_stored(holder, bundle.device_id, receipt)

    def _note_stored(self, holder: int, device: str, receipt: round_pb.SignedStatement) -> None:
        noted = self._note_receipt(holder, receipt)
        outcome = "stored" if noted == device else "bad_receipt"
        self._observer.share_relayed(self._round.task, holder, outcome)

    def _note_receipt(self, holder: int, signed: round_pb.SignedStatement) -> str | None:
        """Believe a receipt that the holder signed; return its device."""
        try:
            statement = verify_statement(
                signed, committee=self._pool.committee, params_sha256=self._params.sha256
            )
            receipt = read_receipt(statement)
        except SharedRoundError:
            return None
        if statement.holder != holder:
            return None
        self._stored[holder][receipt.device_id] = receipt.header_sha256
        return receipt.device_id

    def _note_refusal(self, holder: int, device: str, error: HolderRefused) -> None:
        self._observer.share_relayed(self._round.task, holder, error.reason)
        if error.reason not in DEVICE_FAULTS:
            raise error
        accusers = self._accusers.setdefault(device, set())
        accusers.add(holder)
        is_sure = len(accusers) >= self._params.threshold
        self.faults[device] = error.reason if is_sure else f"refused-by-holder-{min(accusers)}"


def best_holders(held: Mapping[int, set[str]], params: RoundParameters) -> frozenset[int]:
    """Return the holders with which the most shares count, where devices deliver themselves.

    The set that they freeze is that of the devices whose shares all of them have: a holder that
    was away for long costs devices, and one that is left out costs its shares of all. So a few
    devices that pass a holder over leave themselves out, and not the holder.

    Args:
        held: the devices whose shares a holder has.
        params: says how many holders the checks and the votes need.

    Returns:
        Of at least so many as those: a set of holders with the greatest product of its size and
        the number of devices; the larger one where two are equal. All where they are too few.

    Cost: 2^n set operations, n <= 7.
    """
    needed = max(params.quorum, params.scheme.product_shares if params.is_checked else 0)
    best = frozenset(held)
    for least in dict.fromkeys((needed, params.quorum)):
        best_score = (-1, 0)
        for size in range(least, len(held) + 1):
            for holders in itertools.combinations(sorted(held), size):
                devices = len(set.intersection(*(held[holder] for holder in holders)))
                score = (size * devices, size)
                if devices >= params.min_members and score > best_score:
                    best, best_score = frozenset(holders), score
        if best_score[0] > 0:
            break
    return best


def _messages(
    shares: Sequence[tuple[str, pb.InlineShare]],
) -> Iterator[list[tuple[str, pb.InlineShare]]]:
    """Cut shares into messages of bounded size."""
    message: list[tuple[str, pb.InlineShare]] = []
    size = 0
    for device, share in shares:
        num_bytes = share.ByteSize()
        if message and size + num_bytes > MESSAGE_BYTES:
            yield message
            message, size = [], 0
        message.append((device, share))
        size += num_bytes
    if message:
        yield message
