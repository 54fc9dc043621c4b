"""The phases of shared rounds: relay, freeze, check, commit and release.

Implements the driver's port over the holders of one committee. Every step asks for what is missing
and ends with an event, or with nothing where it must be tried again. All that a new leader needs is
in the round's state, in the blob store, and in what the holders answer once more.
"""

from collections.abc import Container, Iterable
from typing import Final

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import (
    EvidenceInsufficientError,
    InconsistentSharesError,
    TooFewSharesError,
)
from security.shared_round.opening.coins import Coin
from security.shared_round.terms.member_set import FrozenSet, Member
from security.shared_round.terms.parameters import RoundParameters
from server.compression.round_compression import RoundCompression
from server.processes.thread_pool import Workers
from server.round.blob_names import ballot_box_blob, evidence_blob
from server.round.observers import SharingObserver
from server.round.ports import AdmissionStore, BlobNotFound, FinishedRound, ModelRegistry
from server.round.shared_round import SharedRound
from server.round.state import (
    ChecksDone,
    Event,
    FreezeRetried,
    Round,
    SetFrozen,
    SharedRoundFailed,
)
from server.sharing.bundles import Bundles
from server.sharing.conclusion import Concluded, conclude, open_released
from server.sharing.conversation import Conversation
from server.sharing.dealt_noise import DealtNoise
from server.sharing.holders import HolderRefused
from server.sharing.pool import HolderPool
from server.sharing.relay import Relay
from server.sharing.released_sums import ReleasedSums
from server.sharing.round_checks import (
    FINAL_REFUSALS,
    NOT_RECEIVED,
    Patience,
    RoundHopeless,
    frozen_set,
    left_out,
    may_be_boxed,
    reliable,
    selection_of,
)
from server.sharing.session import Session
from server.sharing.shared_task import BaseModel, SharedTask
from server.storage.blobs import BlobStore

MAX_ATTEMPTS: Final = 16


class HoldersAway(Exception):
    """Too few share holders answered for the next step; try again."""


class SharedRoundPhases:
    """The shared rounds of one task.

    Args:
        task: committee and settings.
        pool: the committee's holders.
        admission: contributions and small bundles.
        registry: the versions that rounds start from.
        blobs: large bundles and evidence.
        workers: where verdicts and sums are computed.
        observer: metrics.
        compression: of the task's rounds; None: whole updates are shared.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        task: SharedTask,
        *,
        pool: HolderPool,
        admission: AdmissionStore,
        registry: ModelRegistry,
        blobs: BlobStore,
        workers: Workers,
        observer: SharingObserver,
        compression: RoundCompression | None = None,
    ) -> None:
        self._compression = compression
        self._task = task
        self._pool = pool
        self._admission = admission
        self._registry = registry
        self._blobs = blobs
        self._workers = workers
        self._observer = observer
        self._sessions: dict[int, Session] = {}

    async def plan(self, round_: Round, *, cohort_size: int) -> SharedRound:
        """Fix the parameters of a round whose cohort is chosen.

        Raises:
            SharingError: if the settings fit no sound round; checked before any round is opened.
        """
        base = await self._registry.model(round_.task, round_.base_version)
        compression = None
        if self._compression is not None:
            compression = await self._compression.plan(
                round_number=round_.number, base_version=round_.base_version
            )
        params = self._task.parameters(
            BaseModel(version=base.version, sha256=base.sha256, dim=base.dim),
            round_number=round_.number,
            cohort_size=cohort_size,
            compression=compression,
            privacy=round_.privacy,
        )
        return SharedRound(parameters=params.to_bytes().hex(), min_members=params.min_members)

    async def relay(self, round_: Round, *, accepted: int) -> str | None:
        """Pass on what was admitted so far, `accepted` updates, in the background.

        Returns:
            Why the round is hopeless: too many holders refuse to take part; or None.
        """
        session = self._session(round_)
        session.relay_meanwhile(accepted)
        return self._refusal(session)

    async def freeze(self, round_: Round, *, now_ms: int) -> Event | None:
        """Pass everything on and let the holders vote for the set of those that all have."""
        session = self._session(round_)
        ready = await session.relay_all()
        refusal = self._refusal(session)
        if refusal is not None:
            return SharedRoundFailed(at_ms=now_ms, detail=refusal)
        answered = ready | self._final_refusals(session).keys()
        if self._may_still_come(round_, now_ms, answered) or len(ready) < session.params.quorum:
            what = f"{len(ready)} of {session.params.quorum} share holders have the shares"
            return self._not_yet(round_, now_ms, what)
        ready, dealers = session.relay.with_noise(ready)
        if len(ready) < session.params.quorum:
            what = f"the noise of {session.params.noise_dealers} share holders has not reached"
            return self._not_yet(round_, now_ms, f"{what} {session.params.quorum} of them")
        common = session.relay.common(ready)
        if len(common) < session.params.min_members:
            least = session.params.min_members
            detail = f"{len(common)} of at least {least} updates reached every share holder"
            return SharedRoundFailed(at_ms=now_ms, detail=detail)
        frozen = FrozenSet(
            params_sha256=session.params.sha256,
            attempt=_shared(round_).attempt,
            members=_members(common),
            dealers=_members(dealers),
        )
        return await self._vote(round_, session, frozen, now_ms)

    async def check(self, round_: Round, *, now_ms: int) -> Event | None:
        """Let the holders open the coin and the checks; derive what is summed."""
        session, talk = await self._resume(round_)
        try:
            if talk.box is None and not await self._box(round_, session, talk, now_ms):
                what = f"{len(talk.votes)} share holders know the set"
                return self._not_yet(round_, now_ms, what)
            coin = await self._coin(talk)
            if session.params.is_checked:
                await talk.ask_openings(coin)
                if self._may_still_come(round_, now_ms, talk.openings, talk.members):
                    return None
            concluded = await conclude(session.params, talk, coin, workers=self._workers)
        except EvidenceInsufficientError as error:
            return self._not_yet(round_, now_ms, str(error))
        except RoundHopeless as error:
            return SharedRoundFailed(at_ms=now_ms, detail=str(error))
        if isinstance(concluded, str):
            return self._not_yet(round_, now_ms, concluded)
        return await self._done(round_, talk, concluded, now_ms)

    async def release(self, round_: Round, *, now_ms: int) -> ReleasedSums:
        """Let the holders bind themselves to the selection and open its sums.

        Raises:
            HoldersAway: if too few did so far.
            InconsistentSharesError: if wrong shares cannot be told from right ones.
            BlobNotFound: if the evidence is gone, as after the round's end.
        """
        session, talk = await self._resume(round_)
        shared, params = _shared(round_), session.params
        selection = selection_of(talk.frozen, shared)
        key = evidence_blob(round_.task, round_.number, selection.sha256.hex())
        evidence = pb.CommitRequest.FromString(await self._blobs.get(key))
        await talk.ask_commitments(evidence, selection)
        if len(talk.commitments) < params.quorum:
            msg = f"{len(talk.commitments)} of {params.quorum} share holders are committed"
            raise HoldersAway(msg)
        await talk.ask_sums(selection)
        may_come = self._may_still_come(round_, now_ms, talk.sums)
        usable = reliable(params, shared, talk.sums)
        if len(usable) < params.threshold or may_come:
            msg = f"{len(usable)} of {params.threshold} share holders released the sums"
            raise HoldersAway(msg)
        contributions = await self._admission.contributions(round_.task, round_.number)
        shares = {holder: talk.sums[holder].value for holder in usable}
        try:
            return await open_released(
                params,
                shares,
                contributions,
                frozen=talk.frozen,
                selection=selection,
                workers=self._workers,
            )
        except TooFewSharesError as error:
            raise HoldersAway(str(error)) from error
        except InconsistentSharesError as error:
            if len(talk.sums) < len(self._pool.indices):  # another share may tell who lies
                raise HoldersAway(str(error)) from error
            raise

    def is_over(self, round_: Round, *, now_ms: int) -> bool:
        """Tell whether the present phase has lasted as long as the task allows."""
        return self._patience(round_, now_ms).is_over

    async def purge(self, record: FinishedRound) -> None:
        """Let the holders delete the shares of a round that ended; those away keep theirs."""
        session = self._sessions.pop(record.number, None)
        if session is not None:
            await session.close()
        if record.shared is not None:
            params = RoundParameters.from_bytes(record.shared.params_bytes)
            await self._pool.ask(lambda client: client.purge(params.sha256))

    async def close(self) -> None:
        """Stop relaying and close the connections."""
        for session in self._sessions.values():
            await session.close()
        await self._pool.close()

    def _session(self, round_: Round) -> Session:
        session = self._sessions.get(round_.number)
        if session is None:
            params = RoundParameters.from_bytes(_shared(round_).params_bytes)
            relay = Relay(
                round_,
                params,
                pool=self._pool,
                admission=self._admission,
                bundles=Bundles(admission=self._admission, blobs=self._blobs),
                noise=DealtNoise(round_, params, committee=self._pool.committee, blobs=self._blobs),
                observer=self._observer,
            )
            session = Session(params, relay, pool=self._pool, observer=self._observer)
            # Of rounds that another leader ended meanwhile.
            for number in [number for number in self._sessions if number < round_.number]:
                self._sessions.pop(number).cancel()
            self._sessions[round_.number] = session
        return session

    async def _resume(self, round_: Round) -> tuple[Session, Conversation]:
        """Bring holders that were away up to date: the shares first, then the frozen set."""
        session = self._session(round_)
        talk = session.talk_about(frozen_set(session.params, _shared(round_)))
        if len(talk.votes) < len(self._pool.indices):
            await session.relay_all()
            await talk.ask_votes()
            self._look_again(session, talk)
        return session, talk

    async def _box(self, round_: Round, session: Session, talk: Conversation, now_ms: int) -> bool:
        """Put the votes together, once and for every leader; whether there is a box.

        A holder that is not in it takes no part in the checks any more, so all are waited for, and
        as many as the checks take where the task would rather wait than check less.

        Raises:
            RoundHopeless: if the task would rather end than wait or check less.
        """
        key = ballot_box_blob(round_.task, round_.number, talk.frozen.sha256.hex())
        try:
            talk.use_box(pb.LockBoxRequest.FromString(await self._blobs.get(key)))
        except BlobNotFound:
            voters = talk.agreeing()
            may_come = self._may_still_come(round_, now_ms, talk.votes)
            if may_come or not may_be_boxed(session.params, len(voters)):
                return False
            # Kept before a holder sees it: who is locked to one box helps with no other.
            await self._blobs.put(key, talk.make_box(voters).SerializeToString())
        return True

    async def _coin(self, talk: Conversation) -> Coin:
        """Open the coin of the box.

        Raises:
            EvidenceInsufficientError: if too few holders answered.
        """
        await talk.ask_locks()
        await talk.ask_coins()
        return talk.coin()

    async def _vote(
        self, round_: Round, session: Session, frozen: FrozenSet, now_ms: int
    ) -> Event | None:
        shared, params = _shared(round_), session.params
        talk = session.talk_about(frozen)
        await talk.ask_votes()
        if len(talk.votes) >= params.quorum:
            return SetFrozen(
                at_ms=now_ms,
                members=_named(frozen.members),
                dealers=_named(frozen.dealers),
                set_sha256=frozen.sha256.hex(),
                excluded=await self._not_frozen(
                    round_, session, {member.device_id for member in frozen.members}
                ),
            )
        self._look_again(session, talk)
        # A leader before may have proposed another set: only a higher attempt replaces it.
        if any(refusal.reason == "SET_CONFLICT" for refusal in talk.refusals.values()):
            if shared.attempt >= MAX_ATTEMPTS:
                detail = f"{shared.attempt} attempts to freeze the set were in vain"
                return SharedRoundFailed(at_ms=now_ms, detail=detail)
            return FreezeRetried(at_ms=now_ms, attempt=shared.attempt + 1)
        what = f"{len(talk.votes)} of {params.quorum} share holders voted"
        return self._not_yet(round_, now_ms, what)

    async def _not_frozen(
        self, round_: Round, session: Session, members: set[str]
    ) -> tuple[tuple[str, str], ...]:
        contributions = await self._admission.contributions(round_.task, round_.number)
        return tuple(
            (c.device_id, session.relay.faults.get(c.device_id, NOT_RECEIVED))
            for c in contributions
            if c.device_id not in members
        )

    async def _done(
        self,
        round_: Round,
        talk: Conversation,
        concluded: Concluded,
        now_ms: int,
    ) -> Event:
        """Keep the evidence before the state that rests on it."""
        selection, verdict = concluded.selection, concluded.verdict
        evidence = talk.evidence(pb.SelectionMode.ValueType(selection.mode.value))
        key = evidence_blob(round_.task, round_.number, selection.sha256.hex())
        await self._blobs.put(key, evidence.SerializeToString())
        liars = tuple(sorted({*verdict.liars, *talk.coin().liars}))
        return ChecksDone(
            at_ms=now_ms,
            mode=selection.mode.name.lower(),
            sums=selection.sums,
            selection_sha256=selection.sha256.hex(),
            excluded=left_out(talk.frozen, verdict, selection),
            blamed=len(talk.suspects),
            holders=tuple(sorted(talk.openings or talk.coins)),
            liars=liars,
            disputed=verdict.disputed,
        )

    def _look_again(self, session: Session, talk: Conversation) -> None:
        """Ask holders that lack a share, or the round, what they have."""
        for holder, refusal in talk.refusals.items():
            if refusal.reason in {"SHARE_MISSING", "UNKNOWN_ROUND"}:
                session.relay.forget(holder)

    def _final_refusals(self, session: Session) -> dict[int, HolderRefused]:
        return {
            holder: refusal
            for holder, refusal in session.relay.refusals.items()
            if refusal.reason in FINAL_REFUSALS
        }

    def _refusal(self, session: Session) -> str | None:
        final = self._final_refusals(session)
        if len(self._pool.indices) - len(final) >= session.params.quorum:
            return None
        holder, refusal = min(final.items())
        return f"{len(final)} share holders refuse, holder {holder} with {refusal}"

    def _may_still_come(
        self,
        round_: Round,
        now_ms: int,
        have: Container[int],
        among: Iterable[int] | None = None,
    ) -> bool:
        """Tell whether a holder of some, or of all, that is not in `have` is worth waiting for."""
        if not self._patience(round_, now_ms).waits_for_all:
            return False
        wanted = self._pool.indices if among is None else among
        return any(self._pool.is_hoped_for(holder) for holder in wanted if holder not in have)

    def _not_yet(self, round_: Round, now_ms: int, what: str) -> SharedRoundFailed | None:
        return (
            SharedRoundFailed(at_ms=now_ms, detail=what)
            if self.is_over(round_, now_ms=now_ms)
            else None
        )

    def _patience(self, round_: Round, now_ms: int) -> Patience:
        return Patience(
            waited_ms=now_ms - round_.phase_since_ms,
            for_all_ms=int(self._task.holder_timeout_s * 1000),
            for_enough_ms=int(self._task.max_wait_s * 1000),
        )


def _members(named: Iterable[tuple[str, bytes]]) -> tuple[Member, ...]:
    return tuple(Member(device_id=name, header_sha256=digest) for name, digest in named)


def _named(members: Iterable[Member]) -> tuple[tuple[str, str], ...]:
    return tuple((member.device_id, member.header_sha256.hex()) for member in members)


def _shared(round_: Round) -> SharedRound:
    if round_.shared is None:
        msg = f"round {round_.number} is not shared"
        raise ValueError(msg)
    return round_.shared
