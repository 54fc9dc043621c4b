import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.compressed import SparseUpdate
from aggregators.dp import DPConfig, DPGradientAggregator, PrivateAggregate, RoundNoise
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.sparse_rows import SparseVector
from aggregators.rules.multi_krum import multi_krum
from privacy.adaptive_clipping import AdaptiveClipping, update_noise_multiplier
from privacy.banded_noise import BandedNoise
from privacy.charge import Mechanism
from privacy.clipping import clip_by_norm, l2_norm
from privacy.discrete_gaussian import discrete_gaussian
from privacy.errors import PrivacyError
from privacy.fixed_point import grid_norm
from privacy.noise import round_key
from tests.looped import looped

KEY = bytes(range(32))
DIGEST = bytes(range(32, 64))
CONFIG = DPConfig(clipping_norm=1.0, noise_multiplier=1.0, expected_updates=10.0)
NOISE = RoundNoise(noise_key=KEY, round_number=3, manifest_sha256=DIGEST)


def updates_of(
    num: int, dim: int, *, scale: float = 1.0, seed: int = 0, num_samples: int = 5
) -> list[Update]:
    rows = np.random.default_rng(seed).standard_normal((num, dim)) * scale / math.sqrt(dim)
    return [
        Update(key=f"device-{i:03}", vector=row.astype(np.float32), num_samples=num_samples)
        for i, row in enumerate(rows)
    ]


def aggregated(
    updates: Sequence[Update | SparseUpdate], config: DPConfig = CONFIG, noise: RoundNoise = NOISE
) -> PrivateAggregate:
    return DPGradientAggregator(config).aggregate(updates, noise)


def exact_integers(aggregate: PrivateAggregate, config: DPConfig = CONFIG) -> NDArray[np.int64]:
    """The sum without its noise, as the server knows it."""
    units = aggregate.vector * config.expected_updates * 2.0**config.fraction_bits
    noisy = np.rint(units).astype(np.int64)
    difference: NDArray[np.int64] = noisy - aggregate.private.noise
    return difference


def test_the_aggregate_is_the_clipped_sum_on_the_grid_plus_the_noise_of_the_key() -> None:
    updates = updates_of(7, 50, scale=2.0)
    aggregate = aggregated(updates)
    norm = grid_norm(1.0, fraction_bits=20, dim=50)
    key = round_key(KEY, round_number=3, manifest_sha256=DIGEST)
    drawn = discrete_gaussian(key, stddev=1.0 * norm, size=50)
    np.testing.assert_array_equal(aggregate.private.noise, drawn)
    expected = sum(np.rint(clip_by_norm(u.vector, 1.0).astype(float) * 2**20) for u in updates)
    # The aggregator rounds once, not to float32 in between: by at most a unit an update.
    assert np.abs(exact_integers(aggregate) - expected).max() <= 7
    assert aggregate.noise_stddev == norm / 2**20 / 10.0
    assert aggregate.vector.dtype == np.float64


def test_updates_within_the_norm_are_summed_exactly() -> None:
    updates = updates_of(7, 50, scale=0.5)
    aggregate = aggregated(updates)
    columns = zip(*(u.vector.tolist() for u in updates), strict=True)
    exact = [sum(round(Fraction(value) * 2**20) for value in column) for column in columns]
    assert exact_integers(aggregate).tolist() == exact
    assert aggregate.private.num_clipped == 0


def test_no_update_adds_more_than_the_norm_whatever_was_sent() -> None:
    base = updates_of(5, 40, scale=0.3)
    bound = grid_norm(1.0, fraction_bits=20, dim=40)
    without = exact_integers(aggregated(base))
    for seed, scale in enumerate((0.1, 1.0, 50.0, 1e30)):
        (sent,) = updates_of(1, 40, scale=scale, seed=seed)
        for vector in (sent.vector, np.full(40, np.float32(scale))):
            more = [*base, Update(key="z", vector=vector, num_samples=10**6)]
            change = (exact_integers(aggregated(more)) - without).tolist()
            assert sum(value * value for value in change) <= bound**2


def test_without_the_aggregators_own_clipping_the_bound_would_be_exceeded() -> None:
    loose = replace(CONFIG, clipping_norm=100.0)
    without = exact_integers(aggregated(updates_of(5, 40, scale=0.3), loose), loose)
    more = [*updates_of(5, 40, scale=0.3), *updates_of(1, 40, scale=50.0, seed=9)]
    more[-1] = replace(more[-1], key="z")
    change = exact_integers(aggregated(more, loose), loose) - without
    assert float(np.linalg.norm(change)) > grid_norm(1.0, fraction_bits=20, dim=40)


@pytest.mark.parametrize("rule", ["mean", "multi-krum"])
def test_the_order_of_updates_leaves_no_trace(rule: str) -> None:
    config = replace(CONFIG, rule=rule, num_malicious_nodes=2, max_num_samples=9)
    updates = updates_of(9, 300, scale=1.2)
    expected = aggregated(updates, config)
    generator = np.random.default_rng(0)
    for _ in range(5):
        shuffled = [updates[i] for i in generator.permutation(len(updates))]
        other = aggregated(shuffled, config)
        assert other.vector.tobytes() == expected.vector.tobytes()
        assert other.private.keys == expected.private.keys


def test_noise_follows_the_round_and_the_manifest_and_nothing_else() -> None:
    updates = updates_of(4, 30)
    one = aggregated(updates)
    assert aggregated(updates).vector.tobytes() == one.vector.tobytes()
    noises = [
        aggregated(updates, CONFIG, noise).private.noise.tobytes()
        for noise in (
            NOISE,
            replace(NOISE, round_number=4),
            replace(NOISE, manifest_sha256=bytes(32)),
            replace(NOISE, noise_key=KEY[::-1]),
        )
    ]
    assert len(set(noises)) == 4


def test_the_noise_has_the_scale_that_is_stated() -> None:
    dim = 100_000
    config = replace(CONFIG, noise_multiplier=2.0, sensitivity=3.0)
    aggregate = aggregated(updates_of(2, dim, scale=0.001), config)
    ratio = float((aggregate.vector**2).mean()) / aggregate.noise_stddev**2
    assert abs(ratio - 1) < 5 * math.sqrt(2 / dim)
    norm = grid_norm(1.0, fraction_bits=20, dim=dim) / 2**20
    assert aggregate.noise_stddev == pytest.approx(2.0 * 3.0 * norm / 10.0, rel=1e-12)
    assert abs(ratio * 1.05 - 1) > 5 * math.sqrt(2 / dim)


def test_the_sum_is_divided_by_what_was_expected_not_by_what_came() -> None:
    updates = updates_of(4, 30)
    halved = aggregated(updates, replace(CONFIG, expected_updates=20.0))
    np.testing.assert_allclose(halved.vector * 2, aggregated(updates).vector, rtol=1e-15)


def test_weights_are_capped_shares_and_shrink_before_clipping() -> None:
    config = replace(CONFIG, max_num_samples=4)
    vector = np.full(4, 1.5, np.float32)  # norm 3
    counts = {"a": 1, "b": 2, "c": 4, "d": 1000}
    updates = [Update(key=k, vector=vector, num_samples=count) for k, count in counts.items()]
    aggregate = aggregated(updates, config)
    assert aggregate.private.weights.tolist() == [0.25, 0.5, 1.0, 1.0]
    # 0.75 of the norm, then 1.5, 3 and 3: the last three are clipped to 1.
    expected = (0.75 + 3) / 2 * 2**20
    np.testing.assert_allclose(exact_integers(aggregate, config), expected, rtol=1e-6)
    assert aggregate.private.num_clipped == 3
    assert aggregate.private.norms.tolist() == [3.0] * 4


def test_multi_krum_sums_the_clipped_updates_it_selects() -> None:
    config = replace(CONFIG, rule="multi-krum", num_malicious_nodes=2, sensitivity=5.0)
    updates = updates_of(9, 200, scale=0.05)
    for index in (1, 6):
        updates[index] = replace(updates[index], vector=np.full(200, 9.0, np.float32))
    aggregate = aggregated(updates, config)
    clipped = np.stack([clip_by_norm(update.vector, 1.0) for update in updates])
    expected = multi_krum(clipped, num_byzantine=2)
    np.testing.assert_array_equal(aggregate.private.selected, expected.selected)
    np.testing.assert_array_equal(aggregate.private.scores, expected.scores)
    assert not aggregate.private.selected[[1, 6]].any()
    chosen = [u for u, is_in in zip(updates, aggregate.private.selected, strict=True) if is_in]
    kept = aggregated(chosen, replace(CONFIG, sensitivity=5.0))
    np.testing.assert_array_equal(exact_integers(aggregate), exact_integers(kept))


@pytest.mark.parametrize("rule", ["mean", "multi-krum"])
def test_sparse_updates_give_what_their_dense_form_gives(rule: str) -> None:
    config = replace(CONFIG, rule=rule, num_malicious_nodes=1)
    dense = updates_of(7, 120, scale=3.0)
    generator = np.random.default_rng(4)
    for update in dense:
        update.vector[generator.random(120) < 0.8] = 0.0
    sparse = [
        SparseUpdate(
            key=update.key,
            vector=SparseVector.of_dense(update.vector),
            num_samples=update.num_samples,
        )
        for update in dense
    ]
    one, other = aggregated(dense, config), aggregated(sparse, config)
    np.testing.assert_array_equal(one.private.selected, other.private.selected)
    # Norms are summed over other chunks, so the last bit of a clipping factor may differ.
    assert np.abs(exact_integers(one) - exact_integers(other)).max() <= 1
    # Noise is dense: coordinates that nobody sent have it too.
    assert (other.vector != 0).mean() > 0.99


def test_long_vectors_are_summed_in_pieces() -> None:
    dim = (1 << 16) + 7
    updates = updates_of(2, dim, scale=0.5)
    exact = sum(np.rint(u.vector.astype(float) * 2**20).astype(np.int64) for u in updates)
    np.testing.assert_array_equal(exact_integers(aggregated(updates)), exact)


def test_banded_noise_is_that_of_the_step_with_or_without_history() -> None:
    config = replace(CONFIG, mechanism=Mechanism.BANDED, bands=3)
    updates = updates_of(4, 60)
    norm = grid_norm(1.0, fraction_bits=20, dim=60)
    kept: dict[int, NDArray[np.int64]] = {}
    for step in range(1, 7):
        noise = replace(NOISE, round_number=step, history=kept.get)
        aggregate = aggregated(updates, config, noise)
        kept[step] = aggregate.private.noise
        alone = aggregated(updates, config, replace(NOISE, round_number=step))
        assert alone.vector.tobytes() == aggregate.vector.tobytes()
        expected = BandedNoise(3).step(step, KEY, stddev=float(norm), dim=60)
        np.testing.assert_array_equal(aggregate.private.noise, expected)


def adaptive_config(**changes: float) -> DPConfig:
    adaptive = AdaptiveClipping(count_stddev=1.0, target_quantile=0.5, **changes)
    return replace(CONFIG, adaptive_clipping=adaptive)


def test_adaptive_clipping_splits_the_noise_and_moves_the_norm() -> None:
    config = adaptive_config()
    aggregate = aggregated(updates_of(10, 40, scale=0.2), config)
    split = update_noise_multiplier(1.0, count_stddev=1.0)
    norm = grid_norm(1.0, fraction_bits=20, dim=40) / 2**20
    assert aggregate.noise_stddev == pytest.approx(split * norm / 10.0, rel=1e-12)
    # All ten are within the norm; the noise of the count is a tenth.
    assert aggregate.within_fraction is not None
    assert aggregate.next_clipping_norm is not None
    assert aggregate.within_fraction > 0.6
    expected = math.exp(-0.2 * (aggregate.within_fraction - 0.5))
    assert aggregate.next_clipping_norm == pytest.approx(expected, rel=1e-14)
    assert aggregated(updates_of(10, 40)).next_clipping_norm is None
    assert aggregated(updates_of(10, 40)).within_fraction is None


def test_the_count_rests_on_what_devices_say_where_they_say_it() -> None:
    config = adaptive_config()
    updates = updates_of(10, 40, scale=0.2)
    aggregator = DPGradientAggregator(config)
    honest = aggregator.aggregate(updates, NOISE)
    beyond = aggregator.aggregate(updates, NOISE, {u.key: False for u in updates[:4]})
    assert honest.within_fraction is not None
    assert beyond.within_fraction is not None
    # The same noise, four bits less of ten expected; the result is kept below 1.
    assert beyond.within_fraction < honest.within_fraction
    large = aggregator.aggregate(updates_of(10, 40, scale=3.0), NOISE)
    assert large.within_fraction is not None
    assert large.within_fraction < 0.4
    # Flags change neither the sum nor its noise.
    assert beyond.vector.tobytes() == honest.vector.tobytes()


def test_what_is_private_is_not_shown() -> None:
    shown = repr(aggregated(updates_of(3, 5)))
    assert "private" not in shown
    assert "norms" not in shown
    assert str(KEY) not in repr(NOISE)


def test_inputs_are_not_modified() -> None:
    updates = updates_of(5, 60, scale=3.0)
    before = [update.vector.copy() for update in updates]
    aggregated(updates)
    for update, vector in zip(updates, before, strict=True):
        np.testing.assert_array_equal(update.vector, vector)
        assert l2_norm(vector) > 1.0


def bad(vector: NDArray[np.generic]) -> list[Update]:
    return [*updates_of(2, 3), Update(key="z", vector=vector, num_samples=1)]  # type: ignore[arg-type]  # on purpose


@looped(
    "updates, message",
    [
        ([], "at least one update"),
        (updates_of(1, 3) * 2, "must be unique"),
        (updates_of(1, 3, num_samples=0), "num_samples=0"),
        (bad(np.array([1, np.nan, 1], np.float32)), "update 'z' must be finite"),
        (bad(np.array([1, np.inf, 1], np.float32)), "update 'z' must be finite"),
        (bad(np.ones(3)), "update 'z' of float64"),
        (bad(np.ones((3, 1), np.float32)), r"\(3, 1\)"),
        (bad(np.ones(4, np.float32)), "dim=4 must have the same dimension"),
        (bad(np.ones(0, np.float32)), "d >= 1"),
    ],
)
def test_updates_that_cannot_be_summed_are_refused(updates: list[Update], message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        aggregated(updates)


def test_sparse_and_dense_updates_do_not_mix() -> None:
    vector = SparseVector.of_dense(np.ones(3, np.float32))
    sparse = SparseUpdate(key="z", vector=vector, num_samples=1)
    mixed: list[Update | SparseUpdate] = [*updates_of(2, 3), sparse]
    with pytest.raises(AggregationError, match="both be sparse"):
        aggregated(mixed)


def test_multi_krum_needs_enough_updates() -> None:
    config = replace(CONFIG, rule="multi-krum", num_malicious_nodes=3)
    with pytest.raises(TooFewUpdatesError):
        aggregated(updates_of(8, 3), config)


def test_a_sum_that_might_not_fit_is_refused() -> None:
    config = replace(CONFIG, clipping_norm=2.0**20, noise_multiplier=2.0**-20, fraction_bits=41)
    aggregated(updates_of(1, 3), config)
    with pytest.raises(PrivacyError, match="num_terms=2"):
        aggregated(updates_of(2, 3), config)


def test_keys_and_digests_of_another_length_are_refused() -> None:
    with pytest.raises(PrivacyError, match="key must have 32 bytes"):
        aggregated(updates_of(1, 3), CONFIG, replace(NOISE, noise_key=b""))
    with pytest.raises(PrivacyError, match="manifest_sha256"):
        aggregated(updates_of(1, 3), CONFIG, replace(NOISE, manifest_sha256=b""))
    with pytest.raises(PrivacyError, match="context=-1"):
        aggregated(updates_of(1, 3), CONFIG, replace(NOISE, round_number=-1))
