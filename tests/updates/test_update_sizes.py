"""Bytes of updates of models that were trained, and of the worst case: positions at random."""

from functools import cache

import numpy as np
import pytest

from benchmarks.codec.encodings import LIMITS, Encoding, plan_of
from benchmarks.codec.real_updates import RealUpdate, real_update
from tests.looped import looped
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.compressor import compress
from updates.sparse import SparseValues
from updates.stage import zstd_version
from updates.update_codec import codec_for

SMALL_TYPES = [ValueType.FLOAT16, ValueType.BFLOAT16, ValueType.INT8, ValueType.INT4]
SHARES = sorted(LIMITS)


@cache
def update_of(model: str) -> RealUpdate:
    return real_update(model)


def payload_bytes(update: RealUpdate, case: Encoding, version: int) -> int:
    plan = plan_of(update, case, version=version)
    content = compress(plan, update.delta)
    return len(codec_for(plan, update.layer_sizes).encode(content, seed=b"seed"))


@pytest.mark.parametrize("version", [0, zstd_version()])
@pytest.mark.parametrize("kind", SMALL_TYPES)
@pytest.mark.parametrize("share", SHARES)
def test_a_real_update_with_its_positions_is_within_the_promise(
    share: float, kind: ValueType, version: int
) -> None:
    update = update_of("perceptron")
    case = Encoding(method=Method.TOP_K, share=share, value_type=kind)
    assert payload_bytes(update, case, version) <= LIMITS[share] * update.dense_bytes


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_so_is_one_of_a_convolutional_network(share: float) -> None:
    update = update_of("convolutional")
    for kind in SMALL_TYPES:
        case = Encoding(method=Method.TOP_K, share=share, value_type=kind)
        assert payload_bytes(update, case, zstd_version()) <= LIMITS[share] * update.dense_bytes


@looped("method", [Method.RAND_K, Method.ANNOUNCED, Method.PROJECTION])
@looped("share", SHARES)
def test_common_maps_are_smaller_still(method: Method, share: float) -> None:
    update = update_of("perceptron")
    chosen = Encoding(method=Method.TOP_K, share=share, value_type=ValueType.FLOAT16)
    common = Encoding(method=method, share=share, value_type=ValueType.FLOAT16)
    assert payload_bytes(update, common, 0) < payload_bytes(update, chosen, 0)


@looped("kind", SMALL_TYPES)
@looped("share", SHARES)
def test_random_positions_and_numbers_are_within_the_promise_without_zstd(
    share: float, kind: ValueType
) -> None:
    dim = 200_000
    generator = np.random.default_rng(11)
    num_values = round(share * dim)
    content = SparseValues(
        indices=np.sort(generator.choice(dim, num_values, replace=False)),
        values=generator.normal(size=num_values).astype(np.float32),
        dim=dim,
    )
    plan = CompressionPlan(
        method=Method.TOP_K, dim=dim, num_values=num_values, value_type=kind, zstd_version=0
    )
    codec = codec_for(plan, (dim // 2, dim // 2))
    assert len(codec.encode(content, seed=b"")) <= LIMITS[share] * 4 * dim
    # Nor can any other update of the plan exceed it.
    assert codec.max_payload_bytes <= LIMITS[share] * 4 * dim


def test_float32_numbers_leave_no_room_for_positions() -> None:
    update = update_of("perceptron")
    case = Encoding(method=Method.TOP_K, share=0.01, value_type=ValueType.FLOAT32)
    assert payload_bytes(update, case, 0) > update.dense_bytes / 100


def test_coding_errors_of_a_real_update_are_small() -> None:
    update = update_of("perceptron")
    for kind, limit in (
        (ValueType.FLOAT16, 3e-4),
        (ValueType.BFLOAT16, 2e-3),
        (ValueType.INT8, 0.02),
    ):
        plan = plan_of(update, Encoding(method=Method.TOP_K, share=0.1, value_type=kind), version=0)
        codec = codec_for(plan, update.layer_sizes)
        content = compress(plan, update.delta)
        found = codec.decode(codec.encode(content, seed=b"seed"))
        assert isinstance(content, SparseValues)
        assert isinstance(found, SparseValues)
        assert found.indices.tolist() == content.indices.tolist()
        error = np.linalg.norm(found.values - content.values) / np.linalg.norm(content.values)
        assert error < limit
