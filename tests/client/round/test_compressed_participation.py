"""A whole device in rounds with compression and noise, against a server that follows a script."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from client.config import ClientConfig
from client.errors import ClientConfigError, ErrorReason, ProtocolError, RefusedError
from client.hooks import EventKind
from client.outcome import Outcome, RoundMetrics
from client.trainer import Plan, TrainingResult, Weights
from privacy.clipping import clip_by_norm
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from security.shared_round.terms.parameters import RoundParameters
from tests.client.bench import BIG, Bench, ShiftTrainer
from tests.client.committee import CLIP_NORM, Holders, make_holders
from tests.client.federation import LoseResponse, Refuse, ScriptedFederation, Status, make_config
from updates.codec import decode, encode_dense
from updates.compression_plan import CompressionPlan, Method, ValueType, dense_plan
from updates.compressor import compress
from updates.index_coding import encode_coordinates
from updates.plan_message import to_bytes, to_message
from updates.sparse import Content, SparseValues
from updates.update_codec import codec_for

DIM, LAYERS = 7, (6, 1)
SEED = bytes(range(32))
TOP_2 = CompressionPlan(method=Method.TOP_K, dim=DIM, num_values=2)
PROJECTION = CompressionPlan(method=Method.PROJECTION, dim=DIM, num_values=3, map_seed=SEED)
PLANS = [
    TOP_2,
    CompressionPlan(method=Method.RAND_K, dim=DIM, num_values=3, map_seed=SEED),
    CompressionPlan(
        method=Method.ANNOUNCED,
        dim=DIM,
        num_values=2,
        coordinates=encode_coordinates(np.array([1, 6], dtype=np.int64), DIM),
    ),
    PROJECTION,
]


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return make_holders(tmp_path_factory.mktemp("holders"))


def trained(_update: NDArray[np.float32], _assignment: object) -> NDArray[np.float32]:
    """An update of which no two numbers are equal."""
    return np.array([1, -8, 2, 4, -3, 0.5, 16], dtype=np.float32) / np.float32(8)


def only_content(script: ScriptedFederation, plan: CompressionPlan) -> Content:
    (payload,) = script.stored.values()
    return codec_for(plan, LAYERS).decode(bytes(payload))


def only_header(script: ScriptedFederation) -> pb.UpdateHeader:
    (header,) = script.accepted.values()
    return header


def same(one: Content, other: Content) -> bool:
    if isinstance(one, SparseValues) and isinstance(other, SparseValues):
        return np.array_equal(one.indices, other.indices) and np.array_equal(
            one.values, other.values
        )
    return not isinstance(one, SparseValues) and np.array_equal(one, np.asarray(other))


@pytest.mark.parametrize("plan", PLANS, ids=[plan.method.value for plan in PLANS])
async def test_the_server_gets_what_the_plan_asks_for(bench: Bench, plan: CompressionPlan) -> None:
    bench.script.compression = to_message(plan)
    outcome = await bench.client(transform=trained).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    expected = compress(plan, trained(np.zeros(DIM, np.float32), None))
    assert same(only_content(bench.script, plan), expected)
    (payload,) = bench.script.stored.values()
    assert outcome.bytes_up == outcome.metrics.payload_bytes == len(payload)
    assert outcome.metrics.dense_bytes == 16 + 4 * DIM
    assert outcome.metrics.compression_ratio == pytest.approx((16 + 4 * DIM) / len(payload))
    assert not only_header(bench.script).HasField("within_clipping_norm")


async def test_compression_sends_fewer_bytes(bench: Bench) -> None:
    bench.serve_big_model()
    plan = CompressionPlan(
        method=Method.TOP_K, dim=100_000, num_values=1_000, value_type=ValueType.INT8
    )
    bench.script.compression = to_message(plan)
    outcome = await bench.client().participate_once()
    assert outcome.metrics.compression_ratio is not None
    assert outcome.metrics.compression_ratio > 100
    assert set(BIG) == {"weight"}


def test_nothing_sent_has_no_ratio() -> None:
    assert RoundMetrics().compression_ratio is None


async def test_a_dense_plan_sends_the_bytes_of_none(bench: Bench) -> None:
    bench.script.compression = to_message(dense_plan(DIM))
    await bench.client(transform=trained).participate_once()
    (payload,) = bench.script.stored.values()
    assert bytes(payload) == encode_dense(trained(np.zeros(DIM, np.float32), None))


@pytest.mark.parametrize(
    ("inline_max_bytes", "method"), [(64 * 1024, "SubmitInlineUpdate"), (0, "SubmitUpdate")]
)
async def test_every_retry_sends_the_same_bytes(
    bench: Bench, inline_max_bytes: int, method: str
) -> None:
    plan = CompressionPlan(method=Method.DENSE, dim=DIM, num_values=DIM, value_type=ValueType.INT4)
    bench.script.compression = to_message(plan)
    bench.script.faults[method].extend([LoseResponse(), Status()])
    config = make_config(bench.address, inline_max_bytes=inline_max_bytes)
    client = bench.client(config=config, transform=trained)
    assert (await client.participate_once()).outcome is Outcome.ACCEPTED
    requests = bench.script.requests(method)
    headers = [r.header if isinstance(r, pb.InlineUpdate) else r for r in requests]
    digests = {header.payload_digest for header in headers if isinstance(header, pb.UpdateHeader)}
    assert len(digests) == 1


async def test_roundings_of_two_submissions_have_different_seeds(bench: Bench) -> None:
    bench.serve_big_model()
    plan = CompressionPlan(
        method=Method.DENSE, dim=100_000, num_values=100_000, value_type=ValueType.INT8
    )
    bench.script.compression = to_message(plan)
    rng = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    client = bench.client(transform=lambda _update, _assignment: rng)
    for _ in range(2):
        assert (await client.participate_once()).outcome is Outcome.ACCEPTED
        bench.script.round += 1
    first, second = bench.script.stored.values()
    assert len(first) == len(second)
    assert first != second


@pytest.mark.parametrize(
    ("plan", "clip", "is_within"),
    [
        (None, 100.0, True),
        (None, 0.5, False),
        (TOP_2, 100.0, True),
        (TOP_2, 0.5, False),
        # Seven ones: two of them are shorter than that, all of them are not.
        (TOP_2, 2.0, True),
    ],
)
async def test_the_server_learns_of_clipping_where_it_asks(
    bench: Bench, plan: CompressionPlan | None, clip: float, is_within: bool
) -> None:
    bench.script.compression = None if plan is None else to_message(plan)
    bench.script.clipping_norm = clip
    bench.script.privacy = pb.PrivacyPlan(reports_clipping=True)
    await bench.client().participate_once()
    assert only_header(bench.script).within_clipping_norm is is_within


async def test_the_clip_is_that_of_what_is_sent(bench: Bench) -> None:
    bench.script.compression = to_message(TOP_2)
    bench.script.clipping_norm = 1.2
    await bench.client().participate_once()
    content = only_content(bench.script, TOP_2)
    assert isinstance(content, SparseValues)
    # Two of seven ones; clipped before the selection they would be shorter than the norm.
    np.testing.assert_allclose(content.values, 1.2 / 2**0.5, rtol=1e-6)


class SpikeTrainer(ShiftTrainer):
    """Moves one weight by one and 255 others by little."""

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        del plan, should_stop
        trained = weights["weight"].copy()
        trained[:256] += np.float32(0.01)
        trained[100] += 1
        return TrainingResult(weights={"weight": trained}, num_samples=20)


@pytest.mark.parametrize("method", [Method.DENSE, Method.TOP_K])
async def test_rounding_makes_nothing_longer_than_the_clipping_norm(
    bench: Bench, method: Method
) -> None:
    """A server that clips would take it for more than the device counts as sent."""
    bench.serve_big_model()
    bench.script.clipping_norm = 1.0
    plan = CompressionPlan(
        method=method,
        dim=100_000,
        num_values=256 if method is Method.TOP_K else 100_000,
        value_type=ValueType.INT4,
    )
    bench.script.compression = to_message(plan)
    assert (await bench.client(SpikeTrainer()).participate_once()).outcome is Outcome.ACCEPTED
    (payload,) = bench.script.stored.values()
    received = codec_for(plan, (100_000,)).decode(bytes(payload))
    values = received.values if isinstance(received, SparseValues) else received
    assert 0.8 < np.linalg.norm(values) < 1.1


async def test_what_replaces_an_update_is_compressed_and_not_clipped(bench: Bench) -> None:
    bench.script.compression = to_message(TOP_2)
    bench.script.clipping_norm = 0.5
    await bench.client(transform=lambda update, _: -50 * update).participate_once()
    content = only_content(bench.script, TOP_2)
    assert isinstance(content, SparseValues)
    np.testing.assert_allclose(content.values, -50, rtol=1e-6)


async def test_an_update_that_cannot_be_compressed_is_a_failure(bench: Bench) -> None:
    bench.script.compression = to_message(TOP_2)
    outcome = await bench.client(transform=lambda update, _: update[1:]).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert "(6,)" in outcome.detail


async def test_an_update_that_is_too_large_is_not_sent(bench: Bench) -> None:
    bench.script.compression = to_message(TOP_2)
    bench.script.max_update_bytes = 17
    outcome = await bench.client().participate_once()
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.UPDATE_TOO_LARGE
    assert bench.script.count("SubmitInlineUpdate") == 0


async def test_a_plan_that_cannot_be_read_ends_before_training(bench: Bench) -> None:
    trainer = ShiftTrainer()
    bench.script.compression = pb.CompressionPlan(method=pb.CompressionPlan.TOP_K)
    outcome = await bench.client(trainer).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, ProtocolError)
    assert trainer.plans == []


async def test_run_ends_when_the_budget_is_exhausted(bench: Bench) -> None:
    bench.script.answers.append(bench.script.assignment())
    bench.answer(pb.RetryLater.BUDGET_EXHAUSTED)
    assert await bench.client().run() == 1
    assert bench.events[-1].outcome is not None
    assert bench.events[-1].outcome.outcome is Outcome.BUDGET_EXHAUSTED


@pytest.mark.slow
@pytest.mark.parametrize("plan", [None, PROJECTION])
async def test_noise_is_fresh_for_every_submission(
    bench: Bench, plan: CompressionPlan | None
) -> None:
    bench.script.compression = None if plan is None else to_message(plan)
    bench.script.clipping_norm = 1.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5)
    client = bench.client()
    for _ in range(2):
        assert (await client.participate_once()).outcome is Outcome.ACCEPTED
        bench.script.round += 1
    codec = codec_for(plan or dense_plan(DIM), LAYERS)
    first, second = (codec.decode(bytes(payload)) for payload in bench.script.stored.values())
    exact = clip_by_norm(np.ones(DIM, np.float32), 1.0)
    if plan is not None:
        exact = clip_by_norm(np.asarray(compress(plan, np.ones(DIM, np.float32))), 1.0)
    for sent in (first, second):
        # Twelve standard deviations, and by no means nothing.
        assert 1e-3 < np.abs(np.asarray(sent) - exact).max() < 6.0
    assert np.abs(np.asarray(first) - np.asarray(second)).min() > 0


async def test_noise_has_the_standard_deviation_of_the_plan(bench: Bench) -> None:
    bench.serve_big_model()
    bench.script.clipping_norm = 2.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.25)
    await bench.client(ShiftTrainer(0.0)).participate_once()
    (payload,) = bench.script.stored.values()
    noise = decode(bytes(payload), dim=100_000).astype(np.float64)
    # 100,000 samples: the standard deviation is off by 0.2 % of itself, or 1 % in five such.
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert noise.std() != pytest.approx(0.5 * 1.05, rel=0.02)
    assert abs(noise.mean()) < 0.01


async def test_a_device_without_the_extra_says_what_noise_needs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "privacy.noise", None)
    trainer = ShiftTrainer()
    bench.script.clipping_norm = 1.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5)
    outcome = await bench.client(trainer).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, ClientConfigError)
    assert "fedagg[shared]" in outcome.detail
    assert trainer.plans == []


async def test_noise_on_chosen_coordinates_is_refused(bench: Bench) -> None:
    bench.script.compression = to_message(TOP_2)
    bench.script.clipping_norm = 1.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5)
    outcome = await bench.client().participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.WEAKER_THAN_POLICY
    assert bench.script.count("FetchModel") == 0


async def test_a_device_that_adds_noise_tells_nothing_without(bench: Bench) -> None:
    bench.script.clipping_norm = 1.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5, reports_clipping=True)
    outcome = await bench.client().participate_once()
    header = only_header(bench.script)
    assert not header.HasField("within_clipping_norm")
    assert outcome.metrics.num_samples != 1
    assert header.num_samples == 1
    assert not header.HasField("loss_before")
    assert not header.HasField("loss_after")


def share_compressed(
    bench: Bench, holders: Holders, plan: CompressionPlan, **changes: object
) -> RoundParameters:
    """Make the script's round a shared one of mapped updates."""
    bench.script.compression = to_message(plan)
    facts = {
        "dim": plan.num_values,
        "compression_sha256": hashlib.sha256(to_bytes(plan)).digest(),
        **changes,
    }
    return holders.share(bench.script, **facts)


def sharing_config(bench: Bench, holders: Holders) -> ClientConfig:
    return dataclasses.replace(make_config(bench.address), sharing=holders.sharing())


@pytest.mark.parametrize("plan", PLANS[1:], ids=[plan.method.value for plan in PLANS[1:]])
async def test_holders_open_what_the_common_map_makes(
    bench: Bench, holders: Holders, plan: CompressionPlan
) -> None:
    params = share_compressed(bench, holders, plan)
    config = sharing_config(bench, holders)
    client = bench.client(config=config, transform=trained)
    outcome = await client.participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    (bundle,) = bench.script.stored.values()
    opened = holders.update(params, bytes(bundle), 1, 2)
    mapped = compress(plan, trained(np.zeros(DIM, np.float32), None))
    expected = clip_by_norm(np.asarray(mapped), CLIP_NORM)
    np.testing.assert_allclose(opened, expected, atol=1e-6, rtol=0)
    assert outcome.metrics.payload_bytes == len(bundle)


async def test_what_a_shared_round_leaves_out_is_sent_later(bench: Bench, holders: Holders) -> None:
    total = np.zeros(DIM)
    bench.script.model_version = 2
    config = sharing_config(bench, holders)
    client = bench.client(ShiftTrainer(0.03125), config=config)
    rounds = 6
    for number in range(1, rounds + 1):
        plan = dataclasses.replace(
            PROJECTION, error_feedback=True, residual_decay=1.0, map_seed=bytes([number]) * 32
        )
        bench.script.round = number
        params = share_compressed(bench, holders, plan)
        assert (await client.participate_once()).outcome is Outcome.ACCEPTED
        *_, bundle = bench.script.stored.values()
        opened = holders.update(params, bytes(bundle), 1, 2)
        # Clipping cuts nothing off here, or the sums below would not agree.
        assert np.linalg.norm(opened) < 0.9 * CLIP_NORM
        total += expanded(plan, opened)
    residual = client._device.memory._store.current(dim=DIM)
    assert residual is not None
    # Rounding to 2^-20 in every round.
    np.testing.assert_allclose(total + residual.vector, rounds * 0.03125, atol=1e-5)


def expanded(plan: CompressionPlan, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply the transposed map, from its effect on the unit vectors."""
    columns = [np.asarray(compress(plan, unit)) for unit in np.eye(DIM, dtype=np.float32)]
    result: NDArray[np.float64] = np.array(columns, dtype=np.float64) @ values
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression_sha256": b""}, "compression_sha256"),
        ({"compression_sha256": bytes(32)}, "compression_sha256"),
        ({"dim": DIM}, "dim=7"),
    ],
)
async def test_a_round_of_another_map_than_the_plans_is_refused(
    bench: Bench, holders: Holders, changes: dict[str, object], message: str
) -> None:
    share_compressed(bench, holders, PROJECTION, **changes)
    trainer = ShiftTrainer()
    config = sharing_config(bench, holders)
    outcome = await bench.client(trainer, config=config).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, ProtocolError)
    assert message in outcome.detail
    assert trainer.plans == []


@pytest.mark.parametrize("asked", [0.0, 0.49])
async def test_less_noise_than_the_device_wants_is_refused(bench: Bench, asked: float) -> None:
    bench.script.clipping_norm = 1.0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=asked)
    config = dataclasses.replace(make_config(bench.address), min_device_noise_multiplier=0.5)
    outcome = await bench.client(config=config).participate_once()
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.WEAKER_THAN_POLICY
    assert bench.script.count("FetchModel") == 0
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5)
    assert (await bench.client(config=config).participate_once()).outcome is Outcome.ACCEPTED


async def test_a_map_that_the_plan_does_not_know_is_refused(bench: Bench, holders: Holders) -> None:
    holders.share(bench.script, compression_sha256=bytes(range(32)))
    config = sharing_config(bench, holders)
    outcome = await bench.client(config=config).participate_once()
    assert isinstance(outcome.error, ProtocolError)


async def test_a_device_does_not_share_which_numbers_are_large(
    bench: Bench, holders: Holders
) -> None:
    share_compressed(bench, holders, TOP_2)
    config = sharing_config(bench, holders)
    outcome = await bench.client(config=config).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.WEAKER_THAN_POLICY


async def test_noised_shares_pass_the_norm_bound(bench: Bench, holders: Holders) -> None:
    bench.script.privacy = pb.PrivacyPlan(device_noise_multiplier=5.0)
    params = share_compressed(bench, holders, PROJECTION)
    config = sharing_config(bench, holders)
    outcome = await bench.client(config=config).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    (bundle,) = bench.script.stored.values()
    opened = holders.update(params, bytes(bundle), 1, 2)
    assert np.linalg.norm(opened) <= CLIP_NORM + 1e-5


async def test_a_compressed_round_takes_no_stale_update(bench: Bench, holders: Holders) -> None:
    bench.script.model_version = 2
    share_compressed(bench, holders, PROJECTION, staleness_weights=(4, 2, 1))
    closed = Refuse(errors_pb2.ROUND_CLOSED, grpc.StatusCode.FAILED_PRECONDITION)
    bench.script.faults["SubmitInlineUpdate"].append(closed)
    config = sharing_config(bench, holders)
    client = bench.client(config=config)
    assert (await client.participate_once()).outcome is Outcome.ROUND_CLOSED
    assert EventKind.KEPT not in bench.kinds()
    # Nor does the device ask beforehand whether it would have to keep the update.
    assert bench.script.count("ReportProgress") == 0
