"""Builds a published version again from what was kept of its round."""

import asyncio
from dataclasses import dataclass, replace

from aggregators.errors import AggregationError
from server.errors import Overloaded, RoundPurged, ServiceError, UnknownRound
from server.models.stored_rounds import StoredRounds
from server.processes.thread_pool import Workers
from server.round.blob_names import kept_round_blob
from server.round.candidate import AggregationSettings, BuiltModel, build_candidate
from server.round.kept_round import KeptRound, decode_kept_round
from server.round.plain_source import PlainRound
from server.round.ports import BlobNotFound, ModelRegistry, ModelVersion
from server.storage.blobs import BlobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A version, and what came of building it again.

    Attributes:
        version: as it was published.
        contributions: updates it was built from.
        sha256, state_sha256: of the files that were built now; "": none could be built.
        problem: why the files are not those that were published; "": they are.
    """

    version: ModelVersion
    contributions: int = 0
    sha256: str = ""
    state_sha256: str = ""
    problem: str = ""

    @property
    def is_same(self) -> bool:
        """Whether the stored files and those built now have the bytes that were published."""
        return not self.problem


class Replayer:
    """Takes the step of a finished round once more; publishes and stores nothing.

    One round at a time: a replay needs the memory of an aggregation and the thread that open rounds
    are aggregated in, so that one of these waits behind one replay at most.

    Args:
        registry: knows the versions.
        blobs: holds models, states and what was kept.
        workers: where kernels run.
        settings: gives the engine; rule and server optimizer are those of the round.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        blobs: BlobStore,
        workers: Workers,
        settings: AggregationSettings,
    ) -> None:
        self._registry = registry
        self._blobs = blobs
        self._workers = workers
        self._settings = settings
        self._stored_rounds = StoredRounds(registry=registry, blobs=blobs, workers=workers)
        self._turn = asyncio.Lock()

    async def replay(self, task: str, round_number: int) -> Replay:
        """Build the version that a round published.

        Raises:
            UnknownRound: if the round published no version.
            RoundPurged: if what it was built from is not kept, or not any more.
            Overloaded: if another replay runs.
            StoreUnavailable: if a store did not answer.
        """
        models = await self._registry.models(task)
        version = next((each for each in models if each.round_number == round_number), None)
        if version is None:
            msg = f"round {round_number} of task {task} published no version"
            raise UnknownRound(msg)
        if self._turn.locked():
            msg = "another round is being replayed: try again when it is done"
            raise Overloaded(msg)
        async with self._turn:
            return await self._replay(task, round_number, version)

    async def _replay(self, task: str, round_number: int, version: ModelVersion) -> Replay:
        try:
            data = await self._blobs.get(kept_round_blob(task, round_number, version.sha256))
        except BlobNotFound as error:
            msg = f"what round {round_number} was built from is not kept: plain tasks without"
            msg += " privacy keep it for keep-contributions rounds"
            raise RoundPurged(msg) from error
        try:
            await self._stored_rounds.files(
                task, round_number, sha256=version.sha256, state_sha256=version.state_sha256
            )
            kept = await self._workers.run(decode_kept_round, data)
            built = await self._built(task, round_number, version, kept)
        except ServiceError:
            raise
        except Exception as error:  # stored bytes of any kind: whatever they are is told
            return Replay(version=version, problem=f"cannot be built again: {error}")
        rebuilt = (built.sha256, built.state_sha256)
        is_same = rebuilt == (version.sha256, version.state_sha256)
        return Replay(
            version=version,
            contributions=len(kept.contributions),
            sha256=built.sha256,
            state_sha256=built.state_sha256,
            problem="" if is_same else "other bytes were built than were published",
        )

    async def _built(
        self, task: str, round_number: int, version: ModelVersion, kept: KeptRound
    ) -> BuiltModel:
        if kept.base_version != version.parent:
            msg = f"it was kept as built from version {kept.base_version}, which is not"
            msg += f" {version.parent}"
            raise AggregationError(msg)
        base = await self._stored_rounds.base(task, kept.base_version)
        stored = await self._stored_rounds.updates(
            task,
            round_number,
            contributions=kept.contributions,
            inline_payloads=kept.inline_payloads,
            compression=kept.compression,
        )
        settings = replace(self._settings, aggregator=kept.settings)
        return await self._workers.run(build_candidate, base, PlainRound(stored=stored), settings)
