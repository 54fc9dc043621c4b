"""The long work of a round: read the contributions, build the candidate, check it, clean up."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from aggregators.errors import AggregationError
from compression.codec import CodecError
from server.errors import Unavailable
from server.kernels import Workers
from server.round.candidate import (
    AggregationSettings,
    BuiltModel,
    Payload,
    build_candidate,
    candidate_problem,
)
from server.round.state import CandidateModel, Round
from server.storage.blobs import BlobStore
from server.storage.keys import model_blob, payload_blob, payloads_prefix
from server.storage.ports import BlobNotFound, Contribution, RoundStore


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
        max_update_norm: float | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._settings = settings
        self._observer = observer
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
        except (AggregationError, CodecError, BlobNotFound) as error:
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
        return await self._workers.run(
            build_candidate, base, contributions, payloads, self._settings
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
