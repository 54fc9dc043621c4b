import pytest

from benchmarks.harness.figures import (
    KIB,
    MIB,
    NO_TARGET,
    Target,
    dim_of,
    judged,
    median,
    percentile_ms,
    rounded,
    size_name,
)
from updates.codec import dense_payload_bytes


def test_a_row_names_every_target_and_those_that_are_missed() -> None:
    kept = Target(name="round", figure=0.9, limit=1.0, unit="x SecAgg+")
    missed = Target(name="peak RSS", figure=501.0, limit=500.0, unit="MB")
    assert judged(kept) == {"target": "round <= 1 x SecAgg+", "met": "yes"}
    assert judged(kept, missed) == {
        "target": "round <= 1 x SecAgg+; peak RSS <= 500 MB",
        "met": "no: peak RSS",
    }
    assert judged() == {"target": NO_TARGET, "met": NO_TARGET}


def test_percentiles_are_latencies_that_were_measured() -> None:
    latencies = [number / 1000 for number in range(100, 0, -1)]
    assert percentile_ms(latencies, 50) == 50
    assert percentile_ms(latencies, 99) == 99
    assert percentile_ms(latencies, 100) == 100
    assert percentile_ms([0.007], 1) == 7
    with pytest.raises(ValueError, match="no latency"):
        percentile_ms([], 50)


def test_figures_keep_four_digits() -> None:
    assert rounded(123456.0) == 123500.0
    assert median([1.0, 2.0, 1.00004]) == 1.0


def test_sizes_and_dimensions_agree() -> None:
    assert size_name(30 * KIB) == "30 KiB"
    assert size_name(4 * MIB) == "4 MiB"
    assert dense_payload_bytes(dim_of(MIB)) == MIB
