"""The sink of a chunked upload: threads that outlive their caller do no harm."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pytest
import xxhash

from compression.codec import encode_dense
from server.errors import DigestMismatch, TruncatedStream, UpdateTooLarge
from server.storage.ports import Submission
from server.upload import UploadSink

PAYLOAD: Final = encode_dense(np.arange(5, dtype=np.float32))
DEADLINE_S: Final = 20.0


@dataclass
class SlowWriter:
    """A part on a disk that takes as long as the test wants."""

    writing: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    @property
    def bytes_written(self) -> int:
        return 0

    def write(self, data: bytes | memoryview) -> None:
        self.writing.set()
        assert self.go_on.wait(DEADLINE_S)
        self.calls.append(f"write {len(data)}")

    def commit(self) -> None:
        self.calls.append("commit")

    def abort(self, *, keep: bool) -> None:
        self.calls.append(f"abort keep={keep}")


def submission(payload: bytes = PAYLOAD) -> Submission:
    return Submission(
        task="digits",
        round_number=1,
        device_id="d1",
        submission_id="s1",
        model_version=1,
        num_samples=1,
        payload_bytes=len(payload),
        digest=xxhash.xxh3_128_digest(payload),
        loss_before=None,
        loss_after=None,
        inline_payload=None,
    )


def test_an_abort_waits_for_the_write_under_way() -> None:
    writer = SlowWriter()
    sink = UploadSink(submission(), dim=5, writer=writer)
    with ThreadPoolExecutor(2) as threads:
        feeding = threads.submit(sink.feed, [PAYLOAD[:16], PAYLOAD[16:]])
        assert writer.writing.wait(DEADLINE_S)
        # As after a cancelled call: the thread goes on, and the upload is given up.
        aborting = threads.submit(sink.abort, keep=True)
        writer.go_on.set()
        feeding.result(DEADLINE_S)
        aborting.result(DEADLINE_S)
    assert writer.calls == ["write 16", "write 20", "abort keep=True"]


@pytest.mark.parametrize(
    ("received", "refusal"),
    [
        (PAYLOAD[:-1], TruncatedStream),
        (b"", TruncatedStream),
        (encode_dense(np.ones(5, np.float32)), DigestMismatch),
    ],
)
def test_only_the_whole_payload_is_committed(received: bytes, refusal: type[Exception]) -> None:
    writer = SlowWriter()
    writer.go_on.set()
    sink = UploadSink(submission(), dim=5, writer=writer)
    sink.feed([received])
    with pytest.raises(refusal):
        sink.commit()
    assert "commit" not in writer.calls


def test_no_byte_beyond_the_declared_ones_is_written() -> None:
    writer = SlowWriter()
    writer.go_on.set()
    sink = UploadSink(submission(), dim=5, writer=writer)
    sink.feed([PAYLOAD])
    with pytest.raises(UpdateTooLarge):
        sink.feed([b"\0"])
    assert writer.calls == ["write 36"]
