"""From a local update to the numbers that are sent of it, and what remains of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.compression.update_compressor import CompressedUpdate, UpdateCompressor, compresses
from client.errors import TrainingError
from client.trainer import Plan
from tests.looped import looped
from updates.compression_plan import CompressionPlan, Method, ValueType, dense_plan
from updates.compressor import compress, expand
from updates.coordinate_maps import linear_map
from updates.index_coding import encode_coordinates
from updates.sparse import Content, SparseValues
from updates.update_codec import codec_for

DIM = 40
SEED = bytes(range(32))


def plan_of(method: Method, num_values: int = 8, **changes: object) -> CompressionPlan:
    fields: dict[str, object] = {
        "method": method,
        "dim": DIM,
        "num_values": DIM if method is Method.DENSE else num_values,
        "map_seed": SEED if method in {Method.RAND_K, Method.PROJECTION} else b"",
        "coordinates": (
            encode_coordinates(np.arange(num_values, dtype=np.int64) * 3, DIM)
            if method is Method.ANNOUNCED
            else b""
        ),
        "error_feedback": True,
        **changes,
    }
    return CompressionPlan(**fields)  # type: ignore[arg-type]  # by name, per test


def vector_of(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(DIM)).astype(np.float32)


def norm_of(content: Content) -> float:
    values = content.values if isinstance(content, SparseValues) else content
    return float(np.linalg.norm(values.astype(np.float64)))


def through_codec(plan: CompressionPlan, update: CompressedUpdate) -> Content:
    codec = codec_for(plan, (DIM - 10, 10))
    return codec.decode(codec.encode(update.content, seed=b"seed"))


@pytest.mark.parametrize("method", list(Method))
def test_without_clip_and_coding_nothing_is_lost(method: Method) -> None:
    plan = plan_of(method)
    compressor = UpdateCompressor(plan, Plan())
    delta, carried = vector_of(1), vector_of(2)
    update = compressor.compress(delta, carried)
    remaining = compressor.remaining(update, update.content)
    total = expand(plan, update.content).astype(np.float64) + remaining
    # Each coordinate is rounded twice, to float32.
    np.testing.assert_allclose(total, delta.astype(np.float64) + carried, atol=1e-6)
    assert update.is_within_norm
    assert update.scale == 1.0


@pytest.mark.parametrize("method", list(Method))
@given(clip=st.floats(1e-3, 1e3), seed=st.integers(0, 1_000))
def test_what_is_sent_is_never_longer_than_the_clipping_norm(
    method: Method, clip: float, seed: int
) -> None:
    plan = plan_of(method)
    delta = vector_of(seed)
    update = UpdateCompressor(plan, Plan(clipping_norm=clip)).compress(delta, None)
    mapped = compress(plan, delta)
    assert norm_of(update.content) <= clip
    assert update.is_within_norm == (norm_of(mapped) <= clip)
    if update.is_within_norm:
        assert norm_of(update.content) == norm_of(mapped)


def test_the_clip_comes_after_the_map() -> None:
    plan = plan_of(Method.RAND_K)
    delta = vector_of(3)
    short = norm_of(linear_map(plan).compress(delta))
    clip = (short + float(np.linalg.norm(delta))) / 2
    # Clipped before the map, it would have been made shorter.
    update = UpdateCompressor(plan, Plan(clipping_norm=clip)).compress(delta, None)
    assert update.is_within_norm
    np.testing.assert_array_equal(update.content, linear_map(plan).compress(delta))


@pytest.mark.parametrize("method", list(Method))
def test_what_clipping_cut_off_is_not_kept(method: Method) -> None:
    plan = plan_of(method)
    delta = vector_of(4)
    wide, narrow = (UpdateCompressor(plan, Plan(clipping_norm=clip)) for clip in (1e3, 0.5))
    clipped = narrow.compress(delta, None)
    whole = wide.compress(delta, None)
    assert norm_of(clipped.content) == pytest.approx(0.5, rel=1e-6)
    np.testing.assert_allclose(
        narrow.remaining(clipped, clipped.content),
        wide.remaining(whole, whole.content),
        atol=1e-5,  # dividing by the scale enlarges the rounding of what was sent
    )


@looped("value_type", [kind for kind in ValueType if kind is not ValueType.FLOAT32])
@looped("method", [Method.DENSE, Method.TOP_K, Method.PROJECTION])
def test_what_coding_rounds_off_is_kept(method: Method, value_type: ValueType) -> None:
    plan = plan_of(method, value_type=value_type)
    compressor = UpdateCompressor(plan, Plan())
    delta = vector_of(5)
    update = compressor.compress(delta, None)
    received = through_codec(plan, update)
    total = expand(plan, received).astype(np.float64) + compressor.remaining(update, received)
    np.testing.assert_allclose(total, delta, atol=1e-6)
    # The control: without its rounding the sum would be off by more than the tolerance.
    exact = expand(plan, received).astype(np.float64) + compressor.remaining(update, update.content)
    assert np.abs(exact - delta).max() > 1e-5


def add_ones(values: NDArray[np.float32], terms: Plan) -> NDArray[np.float32]:
    return values + np.float32(terms.device_noise_multiplier * terms.clipping_norm)


def spiked() -> NDArray[np.float32]:
    delta = np.full(DIM, 0.01, np.float32)
    delta[7] = 1.0
    return delta


@pytest.mark.parametrize("method", [Method.TOP_K, Method.DENSE])
def test_an_update_that_rounding_made_longer_is_shortened(method: Method) -> None:
    plan = plan_of(method, DIM, value_type=ValueType.INT4)
    compressor = UpdateCompressor(plan, Plan(clipping_norm=0.5))
    update = compressor.compress(spiked(), None)
    received = through_codec(plan, update)
    assert norm_of(received) > 0.51
    shorter = compressor.shortened(update, received)
    assert shorter is not None
    received = through_codec(plan, shorter)
    assert norm_of(received) < 0.51
    assert compressor.shortened(shorter, received) is None
    # What is sent and what is kept are still the update, but for what clipping cut off.
    total = expand(plan, received) / shorter.scale + compressor.remaining(shorter, received)
    np.testing.assert_allclose(total, spiked(), atol=1e-6)


def test_nothing_else_is_shortened() -> None:
    for terms, clips in ((Plan(), True), (Plan(clipping_norm=0.5), False)):
        plan = plan_of(Method.TOP_K, DIM, value_type=ValueType.INT4)
        compressor = UpdateCompressor(plan, terms, clips=clips)
        update = compressor.compress(spiked(), None)
        assert compressor.shortened(update, through_codec(plan, update)) is None
    noisy = UpdateCompressor(
        dense_plan(DIM), Plan(clipping_norm=0.5), add_noise=lambda vector, _: vector + 1
    )
    update = noisy.compress(spiked(), None)
    assert noisy.shortened(update, update.content) is None


@pytest.mark.parametrize("clips_noise", [False, True])
def test_noise_is_sent_and_not_kept(clips_noise: bool) -> None:
    plan = plan_of(Method.PROJECTION)
    terms = Plan(clipping_norm=0.5, device_noise_multiplier=3.0)
    quiet = UpdateCompressor(plan, terms)
    noisy = UpdateCompressor(plan, terms, add_noise=add_ones, clips_noise=clips_noise)
    delta = vector_of(6)
    without, update = quiet.compress(delta, None), noisy.compress(delta, None)
    assert isinstance(update.content, np.ndarray)
    assert isinstance(without.content, np.ndarray)
    if clips_noise:
        assert norm_of(update.content) == pytest.approx(0.5, rel=1e-6)
    else:
        np.testing.assert_allclose(update.content - without.content, 1.5, rtol=1e-6)
    np.testing.assert_allclose(
        noisy.remaining(update, update.content),
        quiet.remaining(without, without.content),
        atol=1e-5,
    )
    assert update.is_within_norm == without.is_within_norm


def test_what_is_kept_is_bounded_whatever_comes_back() -> None:
    plan = plan_of(Method.TOP_K)
    compressor = UpdateCompressor(plan, Plan(clipping_norm=2.0))
    delta = vector_of(7, 0.01)
    update = compressor.compress(delta, None)
    wrong = SparseValues(
        indices=np.arange(8, dtype=np.int64), values=np.full(8, 1e6, np.float32), dim=DIM
    )
    remaining = compressor.remaining(update, wrong)
    # 2 d/k = 10 clipping norms; the update is shorter than one.
    assert norm_of(remaining) == pytest.approx(20.0, rel=1e-5)
    assert norm_of(remaining) <= 20.0


def test_what_earlier_updates_left_may_stay() -> None:
    plan = plan_of(Method.TOP_K)
    compressor = UpdateCompressor(plan, Plan())
    carried = vector_of(8, 100.0)
    update = compressor.compress(np.zeros(DIM, np.float32), carried)
    remaining = compressor.remaining(update, update.content)
    np.testing.assert_allclose(
        expand(plan, update.content).astype(np.float64) + remaining, carried, rtol=1e-6
    )


def test_an_update_that_is_replaced_may_go_unclipped() -> None:
    compressor = UpdateCompressor(plan_of(Method.TOP_K), Plan(clipping_norm=0.5), clips=False)
    update = compressor.compress(vector_of(9), None)
    assert norm_of(update.content) > 0.5
    assert (update.scale, update.is_within_norm) == (1.0, False)


@looped(
    "vector, message",
    [
        (np.zeros(DIM - 1, dtype=np.float32), r"\(39,\)"),
        (np.zeros(DIM), "float64"),
        (np.full(DIM, np.nan, dtype=np.float32), "finite"),
    ],
)
@looped("method", [Method.DENSE, Method.TOP_K, Method.PROJECTION])
def test_what_is_no_update_is_refused(
    method: Method, vector: NDArray[np.float32], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        UpdateCompressor(plan_of(method), Plan()).compress(vector, None)


def test_an_update_is_not_modified() -> None:
    delta, carried = vector_of(10), vector_of(11)
    copies = delta.copy(), carried.copy()
    terms = Plan(clipping_norm=0.1, device_noise_multiplier=1.0)
    compressor = UpdateCompressor(plan_of(Method.DENSE), terms, add_noise=add_ones)
    update = compressor.compress(delta, carried)
    compressor.remaining(update, update.content)
    np.testing.assert_array_equal(delta, copies[0])
    np.testing.assert_array_equal(carried, copies[1])


def test_only_dense_float32_without_memory_changes_nothing() -> None:
    assert not compresses(dense_plan(DIM))
    assert compresses(plan_of(Method.DENSE))
    assert compresses(plan_of(Method.DENSE, error_feedback=False, value_type=ValueType.INT8))
    assert compresses(plan_of(Method.TOP_K, error_feedback=False))
