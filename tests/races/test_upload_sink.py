"""An upload is written by one thread while others end it: the file is never used by two."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ServiceError
from server.intake.upload_sink import UploadSink
from server.round.ports import Submission
from server.storage.blob_files import FileBlobs
from server.task.payload_format import DenseFormat
from tests.races.hunting import Unlocked, attempts, examples, together
from updates.codec import encode_dense

DIM = 500
PAYLOAD = encode_dense(np.arange(DIM, dtype=np.float32))
CHUNK_BYTES = 100

SUBMISSION = Submission(
    task="t",
    round_number=1,
    device_id="d",
    submission_id="s",
    model_version=1,
    num_samples=1,
    payload_bytes=len(PAYLOAD),
    digest=xxhash.xxh3_128_digest(PAYLOAD),
    loss_before=None,
    loss_after=None,
    inline_payload=None,
)


class WatchedPart:
    """A part of a file that sees when two threads are in it, or one comes after the end."""

    def __init__(self, folder: Path) -> None:
        self._part = FileBlobs(folder, fsync=False).open_part("blob", "part")
        self._inside = threading.Lock()
        self.faults: list[str] = []

    def write(self, data: bytes | memoryview) -> None:
        self._alone(lambda: self._part.write(data))

    def commit(self) -> None:
        self._alone(self._part.commit)

    def abort(self, *, keep: bool) -> None:
        self._alone(lambda: self._part.abort(keep=keep))

    def _alone(self, act: Callable[[], None]) -> None:
        if not self._inside.acquire(blocking=False):
            self.faults.append("two threads at once")
            return
        try:
            act()
        finally:
            self._inside.release()


def hunted(folder: Path, enders: list[str], *, locked: bool) -> list[str]:
    """Upload while other threads end the upload; return what was seen at the file."""
    part = WatchedPart(folder)
    sink = UploadSink(SUBMISSION, payload_format=DenseFormat(dim=DIM), writer=part)
    if not locked:
        sink._busy = Unlocked()  # type: ignore[assignment]  # the planted race
    chunks = [PAYLOAD[at : at + CHUNK_BYTES] for at in range(0, len(PAYLOAD), CHUNK_BYTES)]

    def upload() -> None:
        for chunk in chunks:
            sink.feed([chunk])
        sink.commit()

    ends: dict[str, Callable[[], None]] = {
        "keep": lambda: sink.abort(keep=True),
        "drop": lambda: sink.abort(keep=False),
        "commit": sink.commit,
    }
    for error in together(upload, *(ends[name] for name in enders)):
        # What comes after the end is refused; nothing else may go wrong.
        if not isinstance(error, ServiceError | ValueError):
            part.faults.append(repr(error))
    blob = folder / "blob"
    if blob.exists() and blob.read_bytes() != PAYLOAD:
        part.faults.append("the blob is not the payload")
    return part.faults


@examples(40)
@given(enders=st.lists(st.sampled_from(["keep", "drop", "commit"]), min_size=1, max_size=3))
def test_an_upload_is_ended_by_other_threads(
    tmp_path_factory: pytest.TempPathFactory, enders: list[str]
) -> None:
    assert hunted(tmp_path_factory.mktemp("sink"), enders, locked=True) == []


def test_a_planted_race_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = (
        hunted(tmp_path_factory.mktemp("sink"), ["keep", "commit", "drop"], locked=False)
        for _ in attempts(100)
    )
    assert any(seen)
