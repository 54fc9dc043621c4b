"""Builds a published version again from what was kept of its round."""

from dataclasses import dataclass, replace

from aggregators.errors import AggregationError
from server.errors import RoundPurged, UnknownRound
from server.kernels import Workers
from server.round.candidate import AggregationSettings, build_candidate
from server.round.kept_round import decode_kept_round
from server.round.plain_source import PlainRound
from server.round.stored_rounds import StoredRounds
from server.storage.blobs import BlobStore
from server.storage.keys import kept_round_blob
from server.storage.ports import BlobNotFound, ModelVersion, RoundStore
from updates.codec import CodecError
from updates.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A version, and what came of building it again.

    Attributes:
        version: as it was published.
        contributions: updates it was built from.
        sha256, state_sha256: of the files that were built now; empty: what was kept is damaged.
    """

    version: ModelVersion
    contributions: int
    sha256: str
    state_sha256: str

    @property
    def is_same(self) -> bool:
        """Whether both files have the bytes that were published."""
        published = (self.version.sha256, self.version.state_sha256)
        return published == (self.sha256, self.state_sha256)


class Replayer:
    """Takes the step of a finished round once more; publishes and stores nothing.

    Args:
        store: knows the versions.
        blobs: holds models, states and what was kept.
        workers: where kernels run; a replay waits behind the aggregation of an open round.
        settings: gives the engine; rule and server optimizer are those of the round.
    """

    def __init__(
        self,
        *,
        store: RoundStore,
        blobs: BlobStore,
        workers: Workers,
        settings: AggregationSettings,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._settings = settings
        self._stored_rounds = StoredRounds(store=store, blobs=blobs, workers=workers)

    async def replay(self, task: str, round_number: int) -> Replay:
        """Build the version that a round published.

        Raises:
            UnknownRound: if the round published no version.
            RoundPurged: if what it was built from is not kept, or not any more.
            StoreUnavailable: if a store did not answer.
        """
        models = await self._store.models(task)
        version = next((each for each in models if each.round_number == round_number), None)
        if version is None:
            msg = f"round {round_number} of task {task} published no version"
            raise UnknownRound(msg)
        try:
            kept = decode_kept_round(await self._blobs.get(kept_round_blob(task, round_number)))
            base = await self._stored_rounds.base(task, kept.base_version)
            stored = await self._stored_rounds.updates(
                task,
                round_number,
                contributions=kept.contributions,
                inline_payloads=kept.inline_payloads,
                compression=kept.compression,
            )
            settings = replace(self._settings, aggregator=kept.settings)
            built = await self._workers.run(
                build_candidate, base, PlainRound(stored=stored), settings
            )
        except BlobNotFound as error:
            msg = f"what round {round_number} was built from is not kept: see keep-contributions"
            raise RoundPurged(msg) from error
        except (AggregationError, CodecError, ModelError):
            return Replay(version=version, contributions=0, sha256="", state_sha256="")
        return Replay(
            version=version,
            contributions=len(kept.contributions),
            sha256=built.sha256,
            state_sha256=built.state_sha256,
        )
