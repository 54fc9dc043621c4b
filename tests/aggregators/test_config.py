import math
from dataclasses import FrozenInstanceError, fields

import pytest

from aggregators.config import MAX_SAMPLE_CAP, AggregatorConfig
from aggregators.errors import AggregationError
from privacy.clipping import MIN_CLIP_NORM
from tests.looped import looped


def test_defaults_are_the_plain_mean() -> None:
    config = AggregatorConfig()
    assert (config.rule, config.num_malicious_nodes, config.clipping_norm) == ("mean", 0, None)


def test_every_setting_has_a_default() -> None:
    config = AggregatorConfig()
    assert {field.name: getattr(config, field.name) for field in fields(config)} == {
        "rule": "mean",
        "num_malicious_nodes": 0,
        "num_to_select": None,
        "trim": None,
        "max_num_samples": 1_000,
        "clipping_norm": None,
        "norm_factor": 1.5,
        "bucket_size": 2,
        "clipping_radius": None,
        "max_steps": None,
    }


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        AggregatorConfig().trim = 3  # type: ignore[misc]  # under test


def test_the_ends_of_every_range_are_accepted() -> None:
    AggregatorConfig(
        num_malicious_nodes=0,
        num_to_select=1,
        trim=0,
        max_num_samples=1,
        clipping_norm=MIN_CLIP_NORM,
        norm_factor=1.0,
        bucket_size=1,
        clipping_radius=5e-324,
        max_steps=1,
    )
    AggregatorConfig(max_num_samples=MAX_SAMPLE_CAP, clipping_norm=1e300, clipping_radius=1e300)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-40])
def test_clipping_norm_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(AggregationError, match="clipping_norm="):
        AggregatorConfig(clipping_norm=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_clipping_radius_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(AggregationError, match=f"clipping_radius={value} must be finite"):
        AggregatorConfig(clipping_radius=value)


@pytest.mark.parametrize("value", [0.999, 0.0, -1.0, math.nan, math.inf])
def test_norm_factor_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(AggregationError, match=f"norm_factor={value}"):
        AggregatorConfig(norm_factor=value)


@pytest.mark.parametrize("value", [0, -1, 2**29 + 1])
def test_sample_cap_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(AggregationError, match=f"max_num_samples={value} must be in"):
        AggregatorConfig(max_num_samples=value)


@looped(
    "name, value",
    [
        ("num_malicious_nodes", -1),
        ("trim", -1),
        ("num_to_select", 0),
        ("num_to_select", -2),
        ("bucket_size", 0),
        ("max_steps", 0),
    ],
)
def test_counts_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(AggregationError, match=f"{name}={value} must be at least"):
        AggregatorConfig(**{name: value})  # type: ignore[arg-type]  # names of settings
