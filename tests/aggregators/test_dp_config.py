import math
from dataclasses import replace

import pytest

from aggregators.dp_config import DPConfig
from aggregators.errors import AggregationError
from aggregators.private_rules import private_rules
from aggregators.registry import RULES
from privacy.adaptive_clipping import AdaptiveClipping
from privacy.charge import Mechanism
from privacy.errors import PrivacyError
from privacy.fixed_point import grid_norm
from tests.looped import looped

CONFIG = DPConfig(clipping_norm=1.0, noise_multiplier=1.0, expected_updates=10.0)
ADAPTIVE = AdaptiveClipping(count_stddev=1.0)


OTHERS = [*sorted(set(RULES) - set(private_rules())), "nnm+mean", "nothing"]


@pytest.mark.parametrize("rule", OTHERS)
def test_rules_without_a_useful_bound_are_refused(rule: str) -> None:
    with pytest.raises(AggregationError, match=r"must be one of mean, multi-krum: the sensit"):
        replace(CONFIG, rule=rule)


def test_the_noise_is_the_multiplier_times_the_sensitivity() -> None:
    noise = replace(CONFIG, noise_multiplier=0.5, sensitivity=3.0).noise(dim=1000)
    assert noise.stddev == 0.5 * 3.0 * grid_norm(1.0, fraction_bits=20, dim=1000)


def test_adaptive_clipping_takes_more_noise() -> None:
    plain = CONFIG.noise(dim=10).stddev
    split = replace(CONFIG, adaptive_clipping=ADAPTIVE).noise(dim=10).stddev
    assert split == pytest.approx(plain / math.sqrt(1 - 0.25), rel=1e-12)


@looped(
    "changes, message",
    [
        ({"clipping_norm": math.nan}, "clipping_norm=nan"),
        ({"noise_multiplier": 0.0}, r"noise_multiplier=0\.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"sensitivity": 0.9}, r"sensitivity=0\.9"),
        ({"expected_updates": 0.0}, r"expected_updates=0\.0"),
        ({"expected_updates": math.nan}, "expected_updates=nan"),
        ({"max_num_samples": 0}, "max_num_samples=0"),
        ({"num_malicious_nodes": -1}, "num_malicious_nodes=-1"),
        ({"fraction_bits": 53}, "fraction_bits=53"),
        ({"bands": 2}, "bands=2"),
        ({"bands": 0, "mechanism": Mechanism.BANDED}, "bands=0"),
        ({"noise_multiplier": 2.0, "adaptive_clipping": ADAPTIVE}, r"count_stddev=1\.0"),
        (
            {"mechanism": Mechanism.BANDED, "bands": 2, "adaptive_clipping": ADAPTIVE},
            "adaptive_clipping",
        ),
        ({"rule": "multi-krum", "adaptive_clipping": ADAPTIVE}, "adaptive_clipping"),
    ],
)
def test_settings_out_of_range_or_at_odds_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises((AggregationError, PrivacyError), match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]  # on purpose
