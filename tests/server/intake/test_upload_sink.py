"""The sink of a chunked upload: threads that outlive their caller do no harm."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pytest

from server.errors import (
    DigestMismatch,
    MalformedUpdate,
    NonCanonicalUpdate,
    ServiceError,
    TruncatedStream,
    UpdateTooLarge,
    WrongDtype,
    WrongShape,
)
from server.intake.upload_sink import UploadSink, check_inline
from server.task.payload_format import DenseFormat
from tests.looped import looped
from tests.server.task.payloads import COMPRESSED_DIM, PAYLOAD, compressed, submission
from updates.codec import encode_dense
from updates.compression_plan import Method

DEADLINE_S: Final = 20.0


@dataclass
class SlowWriter:
    """A part on a disk that takes as long as the test wants."""

    writing: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    def write(self, data: bytes | memoryview) -> None:
        self.writing.set()
        assert self.go_on.wait(DEADLINE_S)
        self.calls.append(f"write {len(data)}")

    def commit(self) -> None:
        self.calls.append("commit")

    def abort(self, *, keep: bool) -> None:
        self.calls.append(f"abort keep={keep}")


def test_an_abort_waits_for_the_write_under_way() -> None:
    writer = SlowWriter()
    sink = UploadSink(submission(), payload_format=DenseFormat(dim=5), writer=writer)
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
    sink = UploadSink(submission(), payload_format=DenseFormat(dim=5), writer=writer)
    sink.feed([received])
    with pytest.raises(refusal):
        sink.commit()
    assert "commit" not in writer.calls


def test_no_byte_beyond_the_declared_ones_is_written() -> None:
    writer = SlowWriter()
    writer.go_on.set()
    sink = UploadSink(submission(), payload_format=DenseFormat(dim=5), writer=writer)
    sink.feed([PAYLOAD])
    with pytest.raises(UpdateTooLarge):
        sink.feed([b"\0"])
    assert writer.calls == ["write 36"]


@looped("method", [Method.TOP_K, Method.PROJECTION])
@looped("size", [1, 7, 100_000])
def test_a_compressed_payload_may_come_in_any_parts(method: Method, size: int) -> None:
    payload_format, payload = compressed(method)
    check_inline(replace(submission(payload), inline_payload=payload), payload_format)
    writer = SlowWriter()
    writer.go_on.set()
    sink = UploadSink(submission(payload), payload_format=payload_format, writer=writer)
    sink.feed([payload[i : i + size] for i in range(0, len(payload), size)])
    sink.commit()
    assert writer.calls[-1] == "commit"


def receive(sink: UploadSink, payload: bytes) -> None:
    sink.feed([payload])
    sink.commit()


def damaged(payload: bytes) -> list[tuple[bytes, type[ServiceError]]]:
    """Payloads that are none, with the refusal of each."""
    dense = encode_dense(np.zeros(COMPRESSED_DIM, np.float32))
    other_dim = payload[:8] + (COMPRESSED_DIM + 1).to_bytes(8, "little") + payload[16:]
    return [
        (b"", MalformedUpdate),
        (payload[:-1], MalformedUpdate),
        (payload + b"\0", MalformedUpdate),
        (dense, MalformedUpdate),
        (payload[:7] + b"\1" + payload[8:], NonCanonicalUpdate),
        (payload[:5] + b"\2" + payload[6:], WrongDtype),
        (other_dim, WrongShape),
    ]


@looped("index", range(7))
def test_whatever_is_no_update_is_refused_alike_on_every_path(index: int) -> None:
    payload_format, payload = compressed()
    wrong, refusal = damaged(payload)[index]
    with pytest.raises(ServiceError) as whole:
        check_inline(replace(submission(wrong), inline_payload=wrong), payload_format)
    assert isinstance(whole.value, MalformedUpdate | refusal)
    writer = SlowWriter()
    writer.go_on.set()
    sink = UploadSink(submission(wrong), payload_format=payload_format, writer=writer)
    with pytest.raises(ServiceError) as parts:
        receive(sink, wrong)
    assert isinstance(parts.value, MalformedUpdate | refusal)
    assert "commit" not in writer.calls
