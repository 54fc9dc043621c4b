"""The long work of a round: read the contributions, build the candidate, check it, clean up."""

import re
import time
from collections.abc import Iterable
from typing import Final

from aggregators.errors import AggregationError
from server.compression.round_compression import RoundCompression
from server.compression.task_compression import compression_name
from server.errors import Unavailable
from server.models.stored_rounds import DamagedFile, StoredRounds
from server.privacy.noise_history import NoiseHistory
from server.processes.thread_pool import Workers
from server.round.blob_names import (
    kept_round_blob,
    model_blob,
    payloads_prefix,
    state_blob,
    updates_prefix,
)
from server.round.candidate import (
    AggregationSettings,
    BaseVersion,
    BuiltModel,
    RoundSource,
    build_candidate,
    candidate_problem,
    layer_sizes,
    require_state,
)
from server.round.kept_round import KeptRound, encode_kept_round
from server.round.observers import RoundObserver
from server.round.plain_source import PlainRound, StoredUpdates
from server.round.ports import (
    AdmissionStore,
    BlobNotFound,
    FinishedRound,
    ModelRegistry,
    PrivacyLedger,
)
from server.round.private_source import PrivateRound, PrivateSettings, summed_dim
from server.round.state import CandidateModel, Phase, Round
from server.storage.blobs import BlobStore
from updates.codec import CodecError
from updates.compression_plan import CompressionPlan
from updates.errors import ModelError

_ROUND_FOLDER: Final = re.compile("[0-9]{8,18}")


class UnusableVersion(Exception):
    """The current version's files are gone or damaged: no round can start from it."""


class Aggregation:
    """Computes a task's candidates in a kernel thread.

    Args:
        admission: contributions and small payloads.
        ledger: the secret that noise follows from.
        registry: the versions that rounds start from.
        blobs: models, aggregator states and large payloads.
        workers: where kernels run.
        settings: rule and server optimizer.
        observer: metrics and traces.
        compression: of the task's rounds; None: updates are dense.
        private: of a task whose aggregates are noised here; None: they are not.
        tells_losses: whether the devices' losses are among a candidate's metrics.
        keep_contributions: rounds whose contributions stay, so that they can be replayed.
        max_update_norm: bound on the change of the model; None: any finite one.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        *,
        admission: AdmissionStore,
        ledger: PrivacyLedger,
        registry: ModelRegistry,
        blobs: BlobStore,
        workers: Workers,
        settings: AggregationSettings,
        observer: RoundObserver,
        compression: RoundCompression | None = None,
        private: PrivateSettings | None = None,
        tells_losses: bool = True,
        keep_contributions: int = 0,
        max_update_norm: float | None = None,
    ) -> None:
        self._admission = admission
        self._ledger = ledger
        self._blobs = blobs
        self._workers = workers
        self._settings = settings
        self._observer = observer
        self._compression = compression
        self._private = private
        self._tells_losses = tells_losses
        self._keep_contributions = keep_contributions
        self._max_update_norm = max_update_norm
        self._rule = settings.aggregator.byzantine.aggregator.rule
        self._stored_rounds = StoredRounds(registry=registry, blobs=blobs, workers=workers)
        self._sound_version: int | None = None

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        """Build and store the candidate of a round whose contributions are fixed.

        Returns:
            The candidate, durable with its state and, where the task asks for it, with what it was
            built from; doing it again stores the same bytes under the same names. Or why there can
            be none. None, in a shared round only: not yet.

        Raises:
            Unavailable: if a store did not answer; try again.
        """
        started = time.perf_counter()
        try:
            with self._observer.span("aggregate", round_):
                built = await self._build(round_)
        except Unavailable:
            raise
        except (AggregationError, CodecError, ModelError, BlobNotFound) as error:
            self._sound_version = None  # perhaps it is the base that cannot be read
            return str(error)
        except (MemoryError, ArithmeticError, ValueError) as error:
            # A defect that repeats would stop the task for ever: give up this round only.
            return f"{type(error).__name__}: {error}"
        return await self._stored(round_, built, started)

    async def _stored(self, round_: Round, built: BuiltModel, started: float) -> CandidateModel:
        task, number, facts = round_.task, round_.number, built.facts
        await self._blobs.put(model_blob(task, number, built.sha256), built.data)
        await self._blobs.put(state_blob(task, number, built.state_sha256), built.state)
        self._observer.aggregated(
            round_,
            rule=self._rule,
            seconds=time.perf_counter() - started,
            metrics=facts.metrics,
        )
        return CandidateModel(
            sha256=built.sha256,
            size_bytes=len(built.data),
            state_sha256=built.state_sha256,
            excluded=len(facts.excluded),
            metrics=facts.metrics,
            liars=facts.liars,
            next_clipping_norm=facts.next_clipping_norm,
        )

    async def problem(self, round_: Round) -> str | None:
        """Say why the round's candidate must not be published; None: nothing is wrong with it."""
        if round_.candidate is None:
            return "there is no candidate"
        try:
            base = await self._stored_rounds.model(round_.task, round_.base_version)
            candidate = await self._stored_rounds.files(
                round_.task,
                round_.number,
                sha256=round_.candidate.sha256,
                state_sha256=round_.candidate.state_sha256,
            )
        except (BlobNotFound, DamagedFile) as error:
            return f"a file is gone or damaged: {error}"
        return await self._workers.run(
            candidate_problem, candidate, base, max_update_norm=self._max_update_norm
        )

    async def require_base(self, task: str, version: int) -> None:
        """Read a version's files before a round opens on it; what was read once is not read again.

        A round that no step can be taken from would cost devices their work, and a private task
        its budget.

        Raises:
            UnusableVersion: if a file is gone or damaged: an operator has to roll back.
            Unavailable: if a store did not answer.
        """
        if self._sound_version == version:
            return
        try:
            base = await self._stored_rounds.base(task, version)
            await self._workers.run(require_state, base)
        except (AggregationError, ModelError, BlobNotFound) as error:
            msg = f"no round can start from version {version}, roll back to another: {error}"
            raise UnusableVersion(msg) from error
        self._sound_version = version

    async def discard(self, round_: Round) -> None:
        """Delete the files of an abandoned round's candidate; no version shares them."""
        task, number, candidate = round_.task, round_.number, round_.candidate
        if candidate is None:
            return
        await self._blobs.delete(model_blob(task, number, candidate.sha256))
        if candidate.state_sha256:
            await self._blobs.delete(state_blob(task, number, candidate.state_sha256))

    async def purge(self, record: FinishedRound) -> None:
        """Delete the payloads that nobody will ask for once this round has ended.

        Those of an abandoned round go at once, those of a published one after `keep_contributions`
        further rounds. The round before is looked at again, because an upload may have broken off
        after its purge.
        """
        oldest = record.number - self._keep_contributions + 1
        gone = {oldest - 1, oldest - 2}
        if record.decision != Phase.PUBLISHED.value:
            gone.add(record.number)
        await self._purge_rounds(record.task, gone)

    async def sweep(self, task: str, ended: int) -> None:
        """Delete the payloads of all rounds up to `ended` that are not kept, whoever left them.

        An earlier setting may have kept more, and a task that has ended ends no further round.
        """
        stored = await self._blobs.list(updates_prefix(task))
        names = {key.split("/")[2] for key in stored}
        numbers = {int(name) for name in names if _ROUND_FOLDER.fullmatch(name)}
        oldest = ended - self._keep_contributions + 1
        await self._purge_rounds(task, {number for number in numbers if number < oldest})

    async def _purge_rounds(self, task: str, numbers: Iterable[int]) -> None:
        for number in sorted(numbers):
            if number >= 1:
                await self._blobs.delete_prefix(payloads_prefix(task, number))

    async def _build(self, round_: Round) -> BuiltModel:
        base = await self._stored_rounds.base(round_.task, round_.base_version)
        if self._private is not None:
            return await self._build_private(round_, base, self._private)
        source = await self._source(round_)
        built = await self._workers.run(build_candidate, base, source, self._settings)
        if self._keep_contributions and isinstance(source, PlainRound):
            await self._keep(round_, source.stored, built)
        return built

    async def _source(self, round_: Round) -> RoundSource:
        """Return what the round collected."""
        return PlainRound(
            stored=await self._stored_updates(round_), tells_losses=self._tells_losses
        )

    async def _keep(self, round_: Round, stored: StoredUpdates, built: BuiltModel) -> None:
        """Store what the candidate was built from before it can become a version."""
        kept = KeptRound(
            base_version=round_.base_version,
            settings=self._settings.aggregator,
            compression=stored.compression,
            contributions=tuple(stored.contributions),
            inline_payloads=tuple(
                bytes(payload)
                for one, payload in zip(stored.contributions, stored.payloads, strict=True)
                if one.inline
            ),
        )
        data = await self._workers.run(encode_kept_round, kept)
        await self._blobs.put(kept_round_blob(round_.task, round_.number, built.sha256), data)

    async def _build_private(
        self, round_: Round, base: BaseVersion, settings: PrivateSettings
    ) -> BuiltModel:
        privacy = round_.privacy
        if privacy is None:
            msg = f"round {round_.number} must be private: its charge is not in the ledger"
            raise AggregationError(msg)
        stored = await self._stored_updates(round_)
        dim = summed_dim(sum(layer_sizes(base.model)), stored.compression)
        config = settings.config(privacy, dim=dim, num_updates=len(stored.contributions))
        history = NoiseHistory(self._blobs, round_.task, config, dim=dim)
        source = PrivateRound(
            stored=stored,
            number=round_.number,
            privacy=privacy,
            settings=settings,
            noise_key=await self._ledger.noise_key(round_.task),
            history=await history.before(round_.number),
        )
        built = await self._workers.run(build_candidate, base, source, self._settings)
        if built.facts.noise is not None:
            await history.keep(round_.number, built.facts.noise)
        return built

    async def _stored_updates(self, round_: Round) -> StoredUpdates:
        contributions = await self._admission.contributions(round_.task, round_.number)
        inline = [each.device_id for each in contributions if each.inline]
        small = await self._admission.inline_payloads(round_.task, round_.number, inline)
        return await self._stored_rounds.updates(
            round_.task,
            round_.number,
            contributions=contributions,
            inline_payloads=small,
            compression=await self._plan(round_),
        )

    async def _plan(self, round_: Round) -> CompressionPlan | None:
        """Tell how the round's updates are compressed.

        Raises:
            AggregationError: if its devices were told otherwise: the settings were changed since.
        """
        name = compression_name(self._compression.task if self._compression else None)
        if round_.compression != name:
            msg = f"compression={round_.compression or 'none'} of the round must be"
            msg += f" {name or 'none'}, as the task's"
            raise AggregationError(msg)
        if self._compression is None:
            return None
        return await self._compression.plan(
            round_number=round_.number, base_version=round_.base_version
        )
