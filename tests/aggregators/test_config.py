import math

import pytest

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError


def test_defaults_are_the_plain_mean() -> None:
    config = AggregatorConfig()
    assert (config.rule, config.num_malicious_nodes, config.clipping_norm) == ("mean", 0, None)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-40])
def test_clipping_norm_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(AggregationError, match="clipping_norm="):
        AggregatorConfig(clipping_norm=value)


@pytest.mark.parametrize("value", [0, -1, 2**29 + 1])
def test_sample_cap_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(AggregationError, match=f"max_num_samples={value} must be in"):
        AggregatorConfig(max_num_samples=value)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(AggregationError, match="num_malicious_nodes=-1"):
        AggregatorConfig(num_malicious_nodes=-1)
    with pytest.raises(AggregationError, match="trim=-1"):
        AggregatorConfig(trim=-1)
    with pytest.raises(AggregationError, match="num_to_select=0"):
        AggregatorConfig(num_to_select=0)
