"""The long work of a round: read the contributions, build the candidate, check it, clean up."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from aggregators.errors import AggregationError
from server.compressing import RoundCompression, compression_name
from server.errors import Unavailable
from server.kernels import Workers
from server.round.candidate import (
    AggregationSettings,
    BuiltModel,
    Payload,
    build_candidate,
    candidate_problem,
    model_dim,
)
from server.round.noise_history import NoiseHistory
from server.round.private_candidate import (
    PrivateRound,
    PrivateSettings,
    build_private_candidate,
    summed_dim,
)
from server.round.state import CandidateModel, Round
from server.storage.blobs import BlobStore
from server.storage.keys import model_blob, payload_blob, payloads_prefix
from server.storage.ports import BlobNotFound, Contribution, RoundStore
from updates.codec import CodecError
from updates.errors import ModelError
from updates.plan import CompressionPlan


class AggregationObserver(Protocol):
    """Told how an aggregation went; must not fail."""

    def aggregated(
        self, round_: Round, *, rule: str, seconds: float, metrics: Mapping[str, float]
    ) -> None: ...

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]: ...


class Aggregation:
    """Computes a task's candidates in a kernel thread.

    Args:
        store: contributions and small payloads.
        blobs: models and large payloads.
        workers: where kernels run.
        settings: rule and server learning rate.
        observer: metrics and traces.
        compression: of the task's rounds; None: updates are dense.
        private: of a task whose aggregates are noised here; None: they are not.
        max_update_norm: bound on the change of the model; None: any finite one.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        *,
        store: RoundStore,
        blobs: BlobStore,
        workers: Workers,
        settings: AggregationSettings,
        observer: AggregationObserver,
        compression: RoundCompression | None = None,
        private: PrivateSettings | None = None,
        max_update_norm: float | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._settings = settings
        self._observer = observer
        self._compression = compression
        self._private = private
        self._max_update_norm = max_update_norm
        self._rule = settings.aggregator.rule

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        """Build and store the candidate of a round whose contributions are fixed.

        Returns:
            The candidate, durable; doing it again stores the same bytes under the same name.
            Or why there can be none. None, in a shared round only: not yet.

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
            return str(error)
        except (MemoryError, ArithmeticError, ValueError) as error:
            # A defect that repeats would stop the task for ever: give up this round only.
            return f"{type(error).__name__}: {error}"
        return await self._stored(round_, built, started)

    async def _stored(self, round_: Round, built: BuiltModel, started: float) -> CandidateModel:
        await self._blobs.put(model_blob(round_.task, built.sha256), built.data)
        self._observer.aggregated(
            round_,
            rule=self._rule,
            seconds=time.perf_counter() - started,
            metrics=built.metrics,
        )
        return CandidateModel(
            sha256=built.sha256,
            size_bytes=len(built.data),
            excluded=len(built.excluded),
            metrics=built.metrics,
            liars=built.liars,
            next_clipping_norm=built.next_clipping_norm,
        )

    async def problem(self, round_: Round) -> str | None:
        """Why the round's candidate must not be published; None: nothing is wrong with it."""
        if round_.candidate is None:
            return "there is no candidate"
        try:
            base = await self._base(round_)
            data = await self._blobs.get(model_blob(round_.task, round_.candidate.sha256))
        except BlobNotFound as error:
            return f"a model file is gone: {error}"
        return await self._workers.run(
            candidate_problem, data, base, max_update_norm=self._max_update_norm
        )

    async def discard(self, round_: Round) -> None:
        """Delete the candidate of an abandoned round, unless it is some version's file."""
        if round_.candidate is None:
            return
        sha256 = round_.candidate.sha256
        if all(model.sha256 != sha256 for model in await self._store.models(round_.task)):
            await self._blobs.delete(model_blob(round_.task, sha256))

    async def purge(self, task: str, round_number: int) -> None:
        """Delete the round's payloads from the blob store."""
        await self._blobs.delete_prefix(payloads_prefix(task, round_number))

    async def _build(self, round_: Round) -> BuiltModel:
        contributions = await self._store.contributions(round_.task, round_.number)
        payloads = await self._payloads(round_, contributions)
        base = await self._base(round_)
        plan = await self._plan(round_)
        if self._private is not None:
            return await self._build_private(base, contributions, payloads, plan, round_)
        return await self._workers.run(
            build_candidate, base, contributions, payloads, self._settings, plan
        )

    async def _build_private(
        self,
        base: bytes,
        contributions: tuple[Contribution, ...],
        payloads: list[Payload],
        plan: CompressionPlan | None,
        round_: Round,
    ) -> BuiltModel:
        settings, privacy = self._private, round_.privacy
        if settings is None or privacy is None:
            msg = f"round {round_.number} must be private: its charge is not in the ledger"
            raise AggregationError(msg)
        dim = summed_dim(model_dim(base), plan)
        config = settings.config(privacy, dim=dim, num_updates=len(contributions))
        history = NoiseHistory(self._blobs, round_.task, config, dim=dim)
        private = PrivateRound(
            number=round_.number,
            privacy=privacy,
            settings=settings,
            noise_key=await self._store.noise_key(round_.task),
            history=await history.before(round_.number),
        )
        built, noise = await self._workers.run(
            build_private_candidate, base, contributions, payloads, private, plan
        )
        await history.keep(round_.number, noise)
        return built

    async def _plan(self, round_: Round) -> CompressionPlan | None:
        """How the round's updates are compressed.

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

    async def _base(self, round_: Round) -> bytes:
        base = await self._store.model(round_.task, round_.base_version)
        return await self._blobs.get(model_blob(round_.task, base.sha256))

    async def _payloads(
        self, round_: Round, contributions: tuple[Contribution, ...]
    ) -> list[Payload]:
        inline = [c.device_id for c in contributions if c.inline]
        small = await self._store.inline_payloads(round_.task, round_.number, inline)
        found: dict[str, Payload] = dict(zip(inline, small, strict=True))
        for contribution in contributions:
            if not contribution.inline:
                found[contribution.device_id] = await self._blob(round_, contribution)
        return [found[c.device_id] for c in contributions]

    async def _blob(self, round_: Round, contribution: Contribution) -> Payload:
        key = payload_blob(
            round_.task,
            round_.number,
            device_id=contribution.device_id,
            submission_id=contribution.submission_id,
            digest=contribution.digest,
        )
        path = self._blobs.local_path(key)
        if path is None:
            return await self._blobs.get(key)
        return await self._workers.run(_map_file, path)


def _map_file(path: Path) -> memoryview:
    """Map a payload: pages come as the kernel reads them and go when memory is short."""
    try:
        return memoryview(np.memmap(path, dtype=np.uint8, mode="r").data)
    except FileNotFoundError as error:
        msg = f"no payload at {path.name}"
        raise BlobNotFound(msg) from error
