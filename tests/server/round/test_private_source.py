"""The candidate of a private round: the same bytes for the same contributions, and nothing more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.errors import TooFewUpdatesError
from privacy.charge import Charge, Mechanism
from privacy.fixed_point import grid_norm
from server.round.candidate import BaseVersion, RoundFacts, build_candidate
from server.round.plain_source import StoredUpdates
from server.round.ports import Contribution
from server.round.private_source import (
    Noise,
    PrivateRound,
    PrivateSettings,
    round_noise,
    run_id,
)
from server.round.round_privacy import RoundPrivacy
from tests.server.round.stepping import settings_of
from tests.server.round.test_plain_source import contribution
from updates.codec import encode_dense
from updates.compression_plan import CompressionPlan, Method
from updates.compressor import compress
from updates.coordinate_maps import linear_map
from updates.update_codec import codec_for
from updates.vectors import decode_model, encode_model

DIM: Final = 60
CLIP: Final = 1.0
Z: Final = 2.0
EXPECTED: Final = 5.0
BASE: Final = encode_model({"w": np.zeros((DIM - 10, 1), np.float32), "b": np.ones(10, np.float32)})
KEY: Final = bytes(range(32))


def privacy_of(charge: Charge | None = None, **changes: float) -> RoundPrivacy:
    chosen = Charge(noise_multiplier=Z) if charge is None else charge
    privacy = RoundPrivacy(
        charge=chosen.to_text(), clipping_norm=CLIP, sensitivity=1.0, expected_updates=EXPECTED
    )
    return replace(privacy, **changes)  # type: ignore[arg-type]  # by name


def round_of(
    number: int = 1,
    privacy: RoundPrivacy | None = None,
    settings: PrivateSettings | None = None,
    history: dict[int, Noise] | None = None,
) -> PrivateRound:
    return PrivateRound(
        stored=StoredUpdates(contributions=(), payloads=()),
        number=number,
        privacy=privacy or privacy_of(),
        settings=settings or PrivateSettings(),
        noise_key=KEY,
        history=history or {},
    )


@dataclass(frozen=True)
class Built:
    """A candidate, its noise apart: values that compare."""

    data: bytes
    state: bytes
    facts: RoundFacts

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.facts.metrics

    @property
    def excluded(self) -> tuple[str, ...]:
        return self.facts.excluded

    @property
    def next_clipping_norm(self) -> float | None:
        return self.facts.next_clipping_norm


def vectors_of(count: int = 5, seed: int = 0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=DIM).astype(np.float32) for _ in range(count)]


def build(
    round_: PrivateRound,
    payloads: Sequence[bytes],
    *,
    compression: CompressionPlan | None = None,
    order: Sequence[int] | None = None,
    **changes: object,
) -> tuple[Built, Noise]:
    contributions: list[Contribution] = [
        replace(contribution(f"d{i}", payload), **changes)  # type: ignore[arg-type]  # by name
        for i, payload in enumerate(payloads)
    ]
    places = range(len(payloads)) if order is None else order
    stored = StoredUpdates(
        contributions=[contributions[i] for i in places],
        payloads=[payloads[i] for i in places],
        compression=compression,
    )
    candidate = build_candidate(
        BaseVersion(model=BASE), replace(round_, stored=stored), settings_of()
    )
    assert candidate.facts.noise is not None
    built = Built(
        data=candidate.data, state=candidate.state, facts=replace(candidate.facts, noise=None)
    )
    return built, candidate.facts.noise


def step_of(built: Built) -> NDArray[np.float64]:
    def flat(data: bytes) -> NDArray[np.float64]:
        return np.concatenate([t.ravel() for t in decode_model(data)[0].values()], dtype=np.float64)

    return flat(built.data) - flat(BASE)


ADAPTING: Final = tuple(PrivateSettings(adapts=True, count_noise=noise) for noise in (9.0, 10.0))
DENSE: Final = [encode_dense(vector) for vector in vectors_of()]


def test_the_order_of_arrival_leaves_no_trace() -> None:
    first, _ = build(round_of(), DENSE)
    second, _ = build(round_of(), DENSE, order=[3, 0, 4, 2, 1])
    assert first == second


def test_another_round_another_contribution_or_another_fact_has_other_noise() -> None:
    noises = [
        build(round_of(1), DENSE)[1],
        build(round_of(2), DENSE)[1],
        build(round_of(1), DENSE[:4])[1],
        build(round_of(1), DENSE, num_samples=7)[1],
        build(round_of(1), DENSE, within_clipping_norm=True)[1],
        build(round_of(1, privacy_of(expected_updates=6.0)), DENSE)[1],
        *(build(round_of(1, settings=settings), DENSE)[1] for settings in ADAPTING),
    ]
    assert len({noise.tobytes() for noise in noises}) == len(noises)


def test_noises_of_other_settings_have_nothing_in_common() -> None:
    """One key at two scales would tell the noise by the difference, and with it the sum."""
    plain, adapting = (
        build(round_of(1, settings=settings), DENSE)[1].astype(np.float64)
        for settings in (PrivateSettings(), ADAPTING[0])
    )
    assert abs(np.corrcoef(plain, adapting)[0, 1]) < 0.5


def test_another_map_of_the_same_numbers_has_other_noise() -> None:
    plans = [
        CompressionPlan(method=method, dim=DIM, num_values=12, map_seed=bytes([seed] * 32))
        for method, seed in ((Method.RAND_K, 1), (Method.RAND_K, 2), (Method.PROJECTION, 1))
    ]
    payload = codec_for(plans[0], (DIM - 10, 10)).encode(
        compress(plans[0], vectors_of(1)[0]), seed=b""
    )
    noises = [build(round_of(), [payload], compression=plan)[1] for plan in plans]
    assert len({noise.tobytes() for noise in noises}) == len(plans)


def test_the_noise_is_enough_for_the_rule_that_is_run() -> None:
    """Though the round was opened when the rule was another."""
    settings = PrivateSettings(rule="multi-krum", num_malicious_nodes=1, num_to_select=3)
    payloads = [encode_dense(vector) for vector in vectors_of(6)]
    mean = build(round_of(), payloads)[0].metrics["noise_stddev"]
    few = build(round_of(settings=settings), payloads)[0].metrics["noise_stddev"]
    # min(2 (6 - 3) + 1, 2 * 3)
    assert few == pytest.approx(6.0 * mean)
    planned = round_of(privacy=privacy_of(sensitivity=9.0), settings=settings)
    assert build(planned, payloads)[0].metrics["noise_stddev"] == pytest.approx(9.0 * mean)


def test_nobody_tells_no_bit() -> None:
    """An empty round and that of one device differ by that device's bit only: by a half."""
    settings = PrivateSettings(adapts=True, count_noise=1.001, clipping_learning_rate=1.0)
    privacy = privacy_of(expected_updates=1000.0)
    shares = []
    for number in range(1, 400):
        built, _ = build(round_of(number, privacy, settings), [])
        shares.append(built.metrics["within_fraction"])
    # The sum of the bits is 0; its mean over 399 rounds has a standard error of 0.05.
    assert abs(float(np.mean(shares)) - 0.5) * 1000.0 < 0.2


def test_a_round_without_contributions_publishes_noise() -> None:
    built, noise = build(round_of(), [])
    bits = round_of().settings.config(privacy_of(), dim=DIM).fraction_bits
    # One rounding of the model to float32.
    np.testing.assert_allclose(
        step_of(built), np.ldexp(noise.astype(np.float64), -bits) / EXPECTED, atol=1e-6
    )
    assert built.metrics["contributions"] == 0
    assert built.excluded == ()


@pytest.mark.parametrize("method", [Method.PROJECTION, Method.RAND_K, Method.TOP_K])
def test_compressed_updates_are_clipped_and_summed_as_they_were_sent(method: Method) -> None:
    plan = CompressionPlan(
        method=method,
        dim=DIM,
        num_values=12,
        map_seed=b"" if method is Method.TOP_K else bytes(32),
    )
    codec = codec_for(plan, (DIM - 10, 10))
    payloads = [codec.encode(compress(plan, vector), seed=b"") for vector in vectors_of()]
    built, noise = build(round_of(), payloads, compression=plan)
    bits = round_of().settings.config(privacy_of(), dim=len(noise)).fraction_bits
    rows = []
    for vector in vectors_of():
        content = compress(plan, vector)
        row = np.zeros(len(noise))
        if isinstance(content, np.ndarray):
            row[:] = content
        else:
            row[content.indices] = content.values
        rows.append(row * min(1.0, CLIP / float(np.linalg.norm(row))))
    assert len(noise) == (DIM if method is Method.TOP_K else 12)
    expected = (np.sum(rows, axis=0) + np.ldexp(noise.astype(np.float64), -bits)) / EXPECTED
    if method is not Method.TOP_K:
        expected = linear_map(plan).expand(expected)
    np.testing.assert_allclose(step_of(built), expected, atol=1e-5)


def test_multi_krum_sums_those_it_picks() -> None:
    settings = PrivateSettings(rule="multi-krum", num_malicious_nodes=1, num_to_select=3)
    near = [np.full(DIM, 0.01 * (1 + i / 100), np.float32) for i in range(5)]
    far = -near[0]
    payloads = [encode_dense(vector) for vector in (*near, far)]
    built, _ = build(round_of(settings=settings), payloads)
    assert "d5" in built.excluded
    assert built.metrics["excluded"] == len(built.excluded) == 3
    with pytest.raises(TooFewUpdatesError):
        build(round_of(settings=settings), [])


def test_nothing_is_told_that_noise_must_hide() -> None:
    """Two rounds whose updates differ, and with them norms, losses and clippings."""
    told = []
    for scale in (0.01, 100.0):
        payloads = [encode_dense((scale * vector).astype(np.float32)) for vector in vectors_of()]
        metrics = dict(build(round_of(), payloads, loss_before=scale, loss_after=scale)[0].metrics)
        metrics.pop("update_norm")  # of the noisy aggregate
        told.append(metrics)
    assert told[0] == told[1]
    assert set(told[0]) == {"clipping_norm", "contributions", "excluded", "noise_stddev"}


def test_the_noise_has_the_standard_deviation_that_is_told() -> None:
    steps = [step_of(build(round_of(number), [])[0]) for number in range(1, 80)]
    told = build(round_of(), [])[0].metrics["noise_stddev"]
    measured = float(np.std(steps))
    # 4740 samples: a standard error of 1 %.
    assert measured == pytest.approx(told, rel=0.05)
    assert told == pytest.approx(Z * CLIP / EXPECTED, rel=0.01)
    assert measured != pytest.approx(1.2 * told, rel=0.05)


def test_the_clipping_norm_moves_to_where_devices_say() -> None:
    settings = PrivateSettings(adapts=True, count_noise=10.0, clipping_learning_rate=1.0)
    payloads = DENSE * 400
    privacy = privacy_of(expected_updates=2000.0)
    up, _ = build(
        round_of(privacy=privacy, settings=settings), payloads, within_clipping_norm=False
    )
    down, _ = build(
        round_of(privacy=privacy, settings=settings), payloads, within_clipping_norm=True
    )
    assert up.next_clipping_norm is not None
    assert down.next_clipping_norm is not None
    assert down.next_clipping_norm < CLIP < up.next_clipping_norm
    assert up.metrics["within_fraction"] < 0.1
    assert down.metrics["within_fraction"] > 0.9
    fixed, _ = build(round_of(), DENSE)
    assert fixed.next_clipping_norm is None


BANDED: Final = Charge(noise_multiplier=Z, mechanism=Mechanism.BANDED, bands=3)


def test_banded_noise_is_the_same_with_and_without_a_history() -> None:
    privacy = privacy_of(BANDED)
    history: dict[int, Noise] = {}
    for number in range(1, 7):
        _, noise = build(round_of(number, privacy, history=dict(history)), DENSE)
        history[number] = noise
    _, recomputed = build(round_of(6, privacy), DENSE[:2])
    np.testing.assert_array_equal(recomputed, history[6])


def test_other_settings_begin_another_run_of_banded_noise() -> None:
    settings = PrivateSettings()
    privacies = [
        privacy_of(BANDED),
        privacy_of(BANDED, clipping_norm=2.0),
        privacy_of(BANDED, expected_updates=6.0),
        privacy_of(replace(BANDED, noise_multiplier=3.0)),
    ]
    configs = [settings.config(privacy, dim=DIM) for privacy in privacies]
    keys = {
        round_noise(config, round_of(1, privacy), dim=DIM).noise_key
        for config, privacy in zip(configs, privacies, strict=True)
    }
    assert len(keys) == len({run_id(config, dim=DIM) for config in configs}) == len(configs)
    assert run_id(configs[0], dim=DIM) != run_id(configs[0], dim=DIM + 1)


def test_the_grid_is_fine_even_for_short_updates() -> None:
    config = PrivateSettings().config(privacy_of(clipping_norm=1e-6), dim=1_000_000)
    units = np.ldexp(1e-6, config.fraction_bits)
    norm = grid_norm(1e-6, fraction_bits=config.fraction_bits, dim=1_000_000)
    assert norm / units < 1.002


def test_the_secrets_of_a_round_are_not_in_its_text() -> None:
    assert repr(KEY) not in repr(round_of())
