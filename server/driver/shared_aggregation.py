"""The long work of a shared round: let the holders open the sums, build the candidate from them."""

from server.compression.round_compression import RoundCompression
from server.driver.aggregation import Aggregation
from server.processes.thread_pool import Workers
from server.round.candidate import AggregationSettings, RoundSource
from server.round.observers import RoundObserver
from server.round.ports import AdmissionStore, ModelRegistry, PrivacyLedger, RoundStore
from server.round.state import CandidateModel, Round
from server.sharing.shared_rounds import HoldersAway, SharedRoundPhases
from server.sharing.shared_source import OpenedRound
from server.storage.blobs import BlobStore


class SharedAggregation(Aggregation):
    """Computes a shared task's candidates; checks, discards and purges as for plain ones.

    Args:
        phases: the committee's side of the round.
        rule: label of what picks or combines updates.
        rounds: tells the time by which holders must have answered.
        admission, ledger, registry, blobs, workers, settings, observer, compression,
            max_update_norm: as for `Aggregation`.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        *,
        phases: SharedRoundPhases,
        rule: str,
        rounds: RoundStore,
        admission: AdmissionStore,
        ledger: PrivacyLedger,
        registry: ModelRegistry,
        blobs: BlobStore,
        workers: Workers,
        settings: AggregationSettings,
        observer: RoundObserver,
        compression: RoundCompression | None = None,
        max_update_norm: float | None = None,
    ) -> None:
        super().__init__(
            admission=admission,
            ledger=ledger,
            registry=registry,
            blobs=blobs,
            workers=workers,
            settings=settings,
            observer=observer,
            compression=compression,
            max_update_norm=max_update_norm,
        )
        self._phases = phases
        self._rounds = rounds
        self._rule = rule

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        """Build and store the candidate of a round whose selection is derived.

        Returns:
            As for a plain round; None while too few holders answered and the task still waits.
        """
        try:
            return await super().aggregate(round_)
        except HoldersAway as error:
            now_ms = (await self._rounds.snapshot(round_.task)).now_ms
            return str(error) if self._phases.is_over(round_, now_ms=now_ms) else None

    async def _source(self, round_: Round) -> RoundSource:
        now_ms = (await self._rounds.snapshot(round_.task)).now_ms
        return OpenedRound(
            released=await self._phases.release(round_, now_ms=now_ms),
            compression=await self._plan(round_),
            privacy=round_.privacy,
        )
