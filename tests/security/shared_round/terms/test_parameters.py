"""The parameters of a shared round: ranges, bounds, bytes."""

import hashlib
import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import MalformedMessageError, SharingError
from security.shared_round.terms import bounds
from security.shared_round.terms.parameter_facts import Checks, Degraded
from security.shared_round.terms.parameter_rules import blame_bound, group_bound
from security.shared_round.terms.parameters import RoundParameters, plan_parameters
from tests.looped import looped
from tests.security.shared_round.shared_vectors import noised, parameters, plan

P = 2**61 - 1


def test_bytes_are_those_of_the_message_and_come_back() -> None:
    params = parameters(staleness_weights=(4, 2, 1), degraded=Degraded.GROUPED)
    message = pb.RoundParameters.FromString(params.to_bytes())
    assert (message.version, message.task, message.dim) == (1, "digits", 300)
    assert (message.format, message.checks) == (pb.SHAMIR_SEEDED, pb.DISTANCES)
    assert list(message.staleness_weights) == [4, 2, 1]
    assert RoundParameters.from_bytes(params.to_bytes()) == params
    assert params.sha256 == hashlib.sha256(params.to_bytes()).digest()


@pytest.mark.parametrize("tail", [b"\x00", b"\xfa\x01\x01a", b"\x08\x01"])
def test_bytes_that_are_not_canonical_are_refused(tail: bytes) -> None:
    data = parameters().to_bytes() + tail
    with pytest.raises(MalformedMessageError):
        RoundParameters.from_bytes(data)


@looped(
    "name, value",
    [
        ("version", 2),
        ("format", 0),
        ("checks", 9),
        ("threshold", 6),
        ("dim", 0),
        ("model_sha256", "AB" * 32),
        ("field_bits", 31),
        ("field_bits", 7),
        ("sketch_dim", 1000),
        ("wrap_tests", 15),
        ("mask_scale", 2),
        ("min_members", 1),
        ("group_size", 1),
        ("rule", ""),
        ("fraction_bits", 31),
        ("quorum", 2),
    ],
)
def test_a_field_out_of_range_is_refused(name: str, value: object) -> None:
    message = pb.RoundParameters.FromString(parameters().to_bytes())
    setattr(message, name, value)
    with pytest.raises(MalformedMessageError, match="parameters"):
        RoundParameters.from_bytes(message.SerializeToString(deterministic=True))


def test_products_need_enough_holders() -> None:
    with pytest.raises(SharingError, match="2 threshold - 1=7"):
        parameters(threshold=4, holders=6)
    assert parameters(threshold=4, holders=6, checks=Checks.SUM).holders == 6


def test_a_rule_on_distances_needs_them() -> None:
    with pytest.raises(SharingError, match="rule"):
        parameters(checks=Checks.NORM, rule="multi-krum")


def test_pairs_limit_the_members() -> None:
    assert parameters(max_members=1_000).max_members == 1_000
    with pytest.raises(SharingError, match="at most 1000"):
        parameters(max_members=1_001)
    assert parameters(max_members=10_000, checks=Checks.NORM).max_members == 10_000
    with pytest.raises(SharingError, match="at most 10000"):
        parameters(max_members=10_001, checks=Checks.NORM)


def test_a_round_without_checks_takes_the_narrow_field_up_to_its_limit() -> None:
    bound = 1048585  # 2^20 (1 + 2^-22) + sqrt(300) / 2, rounded up
    most = (2**30 - 1) // bound
    narrow = parameters(checks=Checks.SUM, max_members=most)
    wide = parameters(checks=Checks.SUM, max_members=most + 1)
    assert (narrow.norm_bound, narrow.field_bits, wide.field_bits) == (bound, 31, 61)
    assert narrow.num_extras == 0


def test_sums_that_could_wrap_or_not_decode_are_refused() -> None:
    params = parameters(checks=Checks.SUM, max_members=4, staleness_weights=(8,))
    largest = (2**53 - 1) // 32
    assert replace(params, field_bits=61, norm_bound=largest).norm_bound == largest
    with pytest.raises(SharingError, match="wrap around"):
        replace(params, field_bits=61, norm_bound=largest + 1)


def test_the_wrap_test_s_bounds_are_sound_to_the_unit() -> None:
    params = parameters()
    # 300 elements in 1024 buckets: the sketch is exact, and the sign term has no error in it.
    blame = 5.5 + 6.5 * 12 * math.sqrt(1 + 40 / 32)
    group = 5.5 * math.sqrt(32) + 7 * 12
    largest = math.floor(math.sqrt(P) / 11 / max(blame, group))
    assert replace(params, norm_bound=largest).norm_bound == largest
    with pytest.raises(SharingError, match="to be sound"):
        replace(params, norm_bound=largest + 1)


@pytest.mark.parametrize(
    ("clip_norm", "members", "chosen"),
    [(1.0, 100, (32, 12)), (1.5, 100, (32, 6)), (2.6, 100, (16, 3)), (1.0, 8, (8, 6))],
)
def test_a_plan_lowers_masks_and_groups_until_the_test_is_sound(
    clip_norm: float, members: int, chosen: tuple[int, int]
) -> None:
    params = parameters(clip_norm=clip_norm, max_members=members, dim=100_000)
    assert (params.wrap_group, params.mask_scale) == chosen
    assert group_bound(params, params.wrap_group) <= math.sqrt(P) / 11
    assert blame_bound(params) <= math.sqrt(P) / 11


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, 5.0, math.inf, math.nan])
def test_a_plan_without_sound_numbers_is_refused(clip_norm: float) -> None:
    with pytest.raises(SharingError, match="clip_norm"):
        plan_parameters(plan(clip_norm=clip_norm))


def test_parameters_without_noise_have_the_bytes_of_a_message_that_knows_none() -> None:
    data = parameters().to_bytes()
    message = pb.RoundParameters.FromString(data)
    assert max(field.number for field, _ in message.ListFields()) < 28
    for name in ("noise_dealers", "noise_stddev", "compression_sha256"):
        message.ClearField(name)
    assert message.SerializeToString(deterministic=True) == data


def test_noise_and_compression_are_part_of_the_bytes() -> None:
    params = noised(compression_sha256=b"z" * 32)
    message = pb.RoundParameters.FromString(params.to_bytes())
    assert (message.noise_dealers, message.noise_stddev) == (4, params.noise_stddev)
    assert message.compression_sha256 == b"z" * 32
    assert RoundParameters.from_bytes(params.to_bytes()) == params
    assert len({params.sha256, noised().sha256, parameters().sha256}) == 3


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_compressions_hash_has_32_bytes(length: int) -> None:
    with pytest.raises(SharingError, match="compression_sha256"):
        parameters(compression_sha256=bytes(length))


@given(
    multiplier=st.floats(0.01, 20),
    sensitivity=st.floats(1, 10),
    scheme=st.sampled_from([(2, 3), (2, 5), (3, 5), (3, 7)]),
)
def test_a_planned_dealer_adds_no_less_and_no_more_than_it_must(
    multiplier: float, sensitivity: float, scheme: tuple[int, int]
) -> None:
    threshold, holders = scheme
    params = noised(
        noise_multiplier=multiplier,
        sensitivity=sensitivity,
        threshold=threshold,
        holders=holders,
    )
    assert params.noise_dealers == params.quorum
    honest = params.noise_dealers - (threshold - 1)
    wanted = (Fraction(multiplier) * Fraction(sensitivity) * params.norm_bound) ** 2
    assert honest * params.noise_stddev**2 >= wanted > honest * (params.noise_stddev - 1) ** 2


@looped(
    "changes, match",
    [
        ({"noise_dealers": 2}, "noise_dealers=2"),
        ({"noise_dealers": 6}, "noise_dealers=6"),
        ({"noise_dealers": 0}, "noise_stddev"),
        ({"noise_stddev": 0}, "noise_stddev=0"),
        ({"noise_stddev": 3}, "noise_stddev=3"),
        ({"noise_stddev": 2**48 + 1}, "noise_stddev"),
        ({"group_size": 8}, "group_size"),
        ({"degraded": Degraded.GROUPED}, "GROUPED"),
        ({"staleness_weights": (2, 1)}, "staleness_weights"),
        ({"staleness_weights": (2,)}, "staleness_weights"),
    ],
)
def test_noise_that_would_not_protect_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(SharingError, match=match):
        replace(noised(), **changes)  # type: ignore[arg-type]  # by name, per case


@pytest.mark.parametrize("degraded", [Degraded.WAIT, Degraded.ABORT, Degraded.UNCHECKED])
def test_noise_goes_with_modes_that_open_one_sum(degraded: Degraded) -> None:
    assert noised(degraded=degraded).has_noise


@looped("changes", [{"noise_multiplier": -0.1}, {"noise_multiplier": math.inf}])
@looped("sensitivity", [1.0, 0.5, math.nan])
def test_a_plan_of_impossible_noise_is_refused(
    changes: dict[str, float], sensitivity: float
) -> None:
    with pytest.raises(SharingError, match="noise_multiplier"):
        plan_parameters(plan(sensitivity=sensitivity, **changes))


def test_sums_have_room_for_the_tail_of_the_noise() -> None:
    params = noised(checks=Checks.SUM, max_members=4)
    params = replace(params, field_bits=61, norm_bound=2**50)
    room = 2**53 - 1 - 4 * params.norm_bound
    stddev = room // 24  # 12 sqrt(4)
    wide = replace(params, noise_stddev=stddev)
    assert bounds.noise_tail(stddev, dealers=4) == 24 * stddev
    with pytest.raises(SharingError, match="wrap around"):
        replace(wide, noise_stddev=stddev + 1)


def test_a_noised_round_without_checks_takes_the_wide_field_where_it_must() -> None:
    assert noised(checks=Checks.SUM, noise_multiplier=0.1).field_bits == 31
    assert noised(checks=Checks.SUM, noise_multiplier=100.0).field_bits == 61
