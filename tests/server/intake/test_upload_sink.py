"""The sink of a chunked upload: threads that outlive their caller do no harm."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pytest
import xxhash

from security.shared_round.update.bundle import SealedUpdate
from server.errors import (
    DigestMismatch,
    MalformedUpdate,
    NonCanonicalUpdate,
    ServiceError,
    TruncatedStream,
    UpdateTooLarge,
    WrongDtype,
    WrongModelVersion,
    WrongRoundParameters,
    WrongShape,
)
from server.intake.upload_sink import UploadSink, check_inline
from server.round.ports import Submission
from server.task.payload_format import QUICK_VALUES, CompressedFormat, DenseFormat, SealedFormat
from tests.security.shared_round.sealed_round import COMMITTEE, PHONE, make_round
from tests.server.sharing.updates import update_of
from updates.codec import encode_dense
from updates.compression_plan import CompressionPlan, Method
from updates.compressor import compress
from updates.stage import zstd_version
from updates.update_codec import codec_for

PAYLOAD: Final = encode_dense(np.arange(5, dtype=np.float32))
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


def sealed(**changes: object) -> tuple[SealedFormat, bytes]:
    params = make_round(dim=300)
    bundle = SealedUpdate(
        params, COMMITTEE, PHONE, update_of(300), device_id="phone-1", model_version=5
    )
    return SealedFormat(params=replace(params, **changes)), bundle[:]  # type: ignore[arg-type]


def of_bundle(bundle: bytes, **changes: object) -> Submission:
    facts = {
        "device_id": "phone-1",
        "model_version": 5,
        "payload_bytes": len(bundle),
        "digest": xxhash.xxh3_128_digest(bundle),
        "inline_payload": bundle,
    }
    return replace(submission(), **(facts | changes))  # type: ignore[arg-type]


def test_a_bundle_of_the_round_is_taken_whole_and_in_any_pieces() -> None:
    payload_format, bundle = sealed()
    check_inline(of_bundle(bundle), payload_format)
    for size in (1_000, 65_536, len(bundle)):
        check = payload_format.start(of_bundle(bundle))
        for start in range(0, len(bundle), size):
            check.feed(memoryview(bundle)[start : start + size])
        check.finish()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"device_id": "phone-2"}, MalformedUpdate),
        ({"model_version": 4}, WrongModelVersion),
    ],
)
def test_a_bundle_that_says_otherwise_than_its_header_is_refused(
    changes: dict[str, object], refusal: type[ServiceError]
) -> None:
    payload_format, bundle = sealed()
    with pytest.raises(refusal):
        check_inline(of_bundle(bundle, **changes), payload_format)


def test_a_bundle_of_another_round_is_refused() -> None:
    payload_format, bundle = sealed(round=8)
    with pytest.raises(WrongRoundParameters):
        check_inline(of_bundle(bundle), payload_format)


def test_a_bundle_without_its_end_is_refused_as_soon_as_its_prefix_is_there() -> None:
    payload_format, bundle = sealed()
    short = of_bundle(bundle[:-1])
    with pytest.raises(MalformedUpdate, match="the bundle must have"):
        check_inline(short, payload_format)


def test_what_is_no_bundle_is_refused() -> None:
    payload_format, _ = sealed()
    for payload in (b"", b"FSU", b"FSU1\xff\xff\xff\xff", encode_dense(np.ones(5, np.float32))):
        with pytest.raises(MalformedUpdate):
            check_inline(of_bundle(payload), payload_format)


COMPRESSED_DIM: Final = 1000


def compressed(
    method: Method = Method.TOP_K, *, num_values: int = 100
) -> tuple[CompressedFormat, bytes]:
    plan = CompressionPlan(
        method=method,
        dim=COMPRESSED_DIM,
        num_values=num_values,
        map_seed=b"" if method is Method.TOP_K else bytes(32),
        zstd_version=zstd_version(),
    )
    updates = codec_for(plan, (900, 100))
    vector = np.linspace(-1, 1, COMPRESSED_DIM, dtype=np.float32)
    payload = updates.encode(compress(plan, vector), seed=b"")
    return CompressedFormat(codec=updates, num_values=num_values), payload


@pytest.mark.parametrize("method", [Method.TOP_K, Method.PROJECTION])
@pytest.mark.parametrize("size", [1, 7, 100_000])
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


@pytest.mark.parametrize("index", range(7))
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


def test_large_compressed_payloads_are_checked_in_a_thread() -> None:
    small, _ = compressed(num_values=100)
    assert small.is_quick
    large = CompressedFormat(codec=small.codec, num_values=QUICK_VALUES + 1)
    assert not large.is_quick
    assert DenseFormat(dim=5).is_quick
    assert SealedFormat(params=make_round(dim=300)).is_quick
