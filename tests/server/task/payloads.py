"""Payloads of each format, and what is declared of them."""

from dataclasses import replace
from typing import Final

import numpy as np
import xxhash

from security.shared_round.update.bundle import SealedUpdate
from server.round.ports import Submission
from server.task.payload_format import CompressedFormat, SealedFormat
from tests.security.shared_round.sealed_round import COMMITTEE, PHONE, make_round
from tests.server.sharing.updates import update_of
from updates.codec import encode_dense
from updates.compression_plan import CompressionPlan, Method
from updates.compressor import compress
from updates.stage import zstd_version
from updates.update_codec import codec_for

PAYLOAD: Final = encode_dense(np.arange(5, dtype=np.float32))


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
