"""What makes a round's parameters valid: ranges, and bounds that keep numbers from wrapping."""

import string
from typing import Final

from protos.wire import MAX_DIM, MAX_NUMBER
from security.errors import SharingError
from security.shared_round.terms import bounds
from security.shared_round.terms.parameter_facts import (
    ALL_MEMBERS,
    LEAST_MASK_SCALE,
    LEAST_MEMBERS,
    Degraded,
)
from security.shared_round.terms.parameter_fields import ParameterFields

MAX_MEMBERS: Final = 10_000
MAX_DISTANCE_MEMBERS: Final = 1_000
"""Most updates where all pairs are opened: half a million numbers of each holder."""
MAX_STALENESS_WEIGHT: Final = 8
MIN_WRAP_TESTS: Final = 16
MAX_WRAP_TESTS: Final = 256
MAX_MASK_SCALE: Final = 64
MIN_SKETCH_DIM: Final = 64
MAX_SKETCH_DIM: Final = 2**16

_MAX_NAME_CHARS: Final = 256
_MAX_STALENESS: Final = 64
_SHA256_BYTES: Final = 32
_MAX_NOISE_STDDEV: Final = 2**48  # of which dealers can draw


def check_parameters(params: ParameterFields) -> None:
    """Refuse parameters that are out of range, or that would let an opened number wrap around.

    Raises:
        SharingError: naming the field, the rule and the value.
    """
    _check_names(params)
    _check_committee(params)
    _check_members(params)
    _check_noise(params)
    _check_numbers(params)
    _check_tests(params)


def group_bound(params: ParameterFields, group: int) -> int:
    """Bound the wrap-around test's scalar that an honest group of `group` members opens."""
    return bounds.group_wrap_bound(
        params.norm_bound,
        group=group,
        mask_scale=params.mask_scale,
        error=bounds.sketch_error(params.sketch_dim, params.dim),
    )


def blame_bound(params: ParameterFields) -> int:
    """Return the largest scalar of the wrap-around test that one honest member opens."""
    return bounds.blame_wrap_bound(
        params.norm_bound,
        nominal_group=params.wrap_group,
        wrap_tests=params.wrap_tests,
        mask_scale=params.mask_scale,
        error=bounds.sketch_error(params.sketch_dim, params.dim),
    )


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        message = f"{name}={value!r} must be {rule}"
        raise SharingError(message)


def _check_names(params: ParameterFields) -> None:
    for name in ("task", "rule"):
        value = getattr(params, name)
        _require(0 < len(value) <= _MAX_NAME_CHARS, name, value, "1 to 256 characters")
    for name in ("round", "base_version"):
        value = getattr(params, name)
        _require(1 <= value < MAX_NUMBER, name, value, "in 1..2**53 - 1")
    digest = params.model_sha256
    is_hex = len(digest) == 2 * _SHA256_BYTES and set(digest) <= set(string.hexdigits.lower())
    _require(is_hex, "model_sha256", digest, "64 lower-case hex digits")
    length = len(params.committee_sha256)
    _require(length == _SHA256_BYTES, "len(committee_sha256)", length, "32")
    length = len(params.compression_sha256)
    _require(length in (0, _SHA256_BYTES), "len(compression_sha256)", length, "0 or 32")


def _check_committee(params: ParameterFields) -> None:
    scheme = params.scheme
    low, high = params.threshold, params.holders
    _require(low <= params.quorum <= high, "quorum", params.quorum, f"in {low}..{high}")
    if params.is_checked and scheme.product_shares > high:
        message = f"holders={high} must be at least 2 threshold - 1={scheme.product_shares}"
        message += f" for checks={params.checks.name}"
        raise SharingError(message)


def _check_members(params: ParameterFields) -> None:
    least, most = params.min_members, params.max_members
    _require(LEAST_MEMBERS <= least <= most, "min_members", least, f"in 2..max_members={most}")
    limit = MAX_DISTANCE_MEMBERS if params.has_distances else MAX_MEMBERS
    _require(most <= limit, "max_members", most, f"at most {limit}")
    for name in ("num_byzantine", "num_to_select"):
        value = getattr(params, name)
        _require(0 <= value <= most, name, value, f"in 0..max_members={most}")
    size = params.group_size
    _require(size == 0 or 2 <= size <= most, "group_size", size, f"0 or in 2..max_members={most}")
    _require(
        params.rule == ALL_MEMBERS or params.has_distances,
        "rule",
        params.rule,
        f"{ALL_MEMBERS!r} where checks is not DISTANCES",
    )
    weights = params.staleness_weights
    is_valid = all(1 <= weight <= MAX_STALENESS_WEIGHT for weight in weights)
    is_valid = is_valid and 1 <= len(weights) <= _MAX_STALENESS
    _require(is_valid, "staleness_weights", weights, "1 to 64 numbers in 1..8")


def _check_noise(params: ParameterFields) -> None:
    dealers, stddev = params.noise_dealers, params.noise_stddev
    if dealers == 0:
        _require(stddev == 0, "noise_stddev", stddev, "0 without noise_dealers")
        return
    low, high = params.threshold, params.holders
    _require(low <= dealers <= high, "noise_dealers", dealers, f"0 or in {low}..{high}")
    least, most = bounds.MIN_NOISE_STDDEV, _MAX_NOISE_STDDEV
    _require(least <= stddev <= most, "noise_stddev", stddev, f"in {least}..{most}")
    # Noise is dealt once, for one sum: in several it would be the same, and subtract away.
    _require(params.group_size == 0, "group_size", params.group_size, "0 with noise_dealers")
    _require(
        params.degraded is not Degraded.GROUPED,
        "degraded",
        params.degraded.name,
        "another than GROUPED with noise_dealers",
    )
    weights = params.staleness_weights
    _require(weights == (1,), "staleness_weights", weights, "(1,) with noise_dealers")


def _check_numbers(params: ParameterFields) -> None:
    _require(1 <= params.dim <= MAX_DIM, "dim", params.dim, f"in 1..{MAX_DIM}")
    _require(1 <= params.fraction_bits <= 30, "fraction_bits", params.fraction_bits, "in 1..30")
    widths = (61,) if params.is_checked else (31, 61)
    _require(params.field_bits in widths, "field_bits", params.field_bits, f"one of {widths}")
    bound = params.norm_bound
    _require(bound >= 1, "norm_bound", bound, "at least 1")
    most = params.max_members * max(params.staleness_weights) * bound
    most += bounds.noise_tail(params.noise_stddev, dealers=params.noise_dealers)
    limit = min((params.field.modulus + 1) // 2, bounds.MAX_EXACT_SUM)
    if most >= limit:
        message = f"max_members * weight * norm_bound and the noise={most} must be below"
        message += f" {limit}, or sums wrap around: norm_bound={bound}"
        raise SharingError(message)


def _check_tests(params: ParameterFields) -> None:
    names = ("sketch_dim", "wrap_tests", "wrap_group", "mask_scale")
    if not params.is_checked:
        for name in names:
            _require(getattr(params, name) == 0, name, getattr(params, name), "0 without checks")
        return
    k, most = params.sketch_dim, params.max_members
    is_power = k.bit_count() == 1 and MIN_SKETCH_DIM <= k <= MAX_SKETCH_DIM
    _require(is_power, "sketch_dim", k, f"a power of two in {MIN_SKETCH_DIM}..{MAX_SKETCH_DIM}")
    for name, least, greatest in (
        ("wrap_tests", MIN_WRAP_TESTS, MAX_WRAP_TESTS),
        ("wrap_group", 2, most),
        ("mask_scale", LEAST_MASK_SCALE, MAX_MASK_SCALE),
    ):
        value = getattr(params, name)
        _require(least <= value <= greatest, name, value, f"in {least}..{greatest}")
    limit = params.field.modulus // 2
    squares = max(bounds.distance_bound(params.norm_bound), params.norm_bound**2)
    _require(squares < limit, "norm_bound", params.norm_bound, "small enough for its square")
    error = bounds.sketch_error(k, params.dim)
    sound = bounds.sound_wrap_bound(params.field.modulus, error=error)
    widest = max(group_bound(params, params.wrap_group), blame_bound(params))
    if widest > sound:
        message = f"norm_bound={params.norm_bound} with mask_scale={params.mask_scale} and"
        message += f" wrap_group={params.wrap_group} opens up to {widest}, which must be at most"
        message += f" {sound} for the wrap-around test to be sound"
        raise SharingError(message)
