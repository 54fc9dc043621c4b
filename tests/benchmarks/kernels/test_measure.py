from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.kernels import measure
from benchmarks.kernels.measure import Contender, Effort, fastest_ways, measure_rule, measure_size
from benchmarks.kernels.results import OURS
from benchmarks.kernels.rules import make_rows
from benchmarks.kernels.ways import Answer, Call, Matrix, Way

EFFORT = Effort(repeats=3, budget_s=60.0, limit_s=60.0)
ROWS = make_rows(6, 100, seed=0)


def _say(_: str) -> None:
    pass


def _way(
    name: str, function: Callable[[Matrix], Answer], *, rows_power: int = 1, copies: float = 1.0
) -> Way:
    def bind(matrix: Matrix, _: int) -> Call:
        return lambda: function(matrix)

    return Way(name=name, bind=bind, rows_power=rows_power, copies=copies)


def _mean(rows: Matrix) -> Answer:
    return np.asarray(rows.mean(axis=0))


def _contender(peer: str, name: str, seconds: list[float]) -> Contender:
    return Contender(
        peer=peer,
        way=_way(name, _mean),
        call=lambda: _mean(ROWS),
        first_s=seconds[0],
        extra_bytes=None,
        seconds=seconds,
    )


def test_libraries_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_CLOSE", 1e9)
    calls: list[str] = []

    def logged(name: str) -> Way:
        def function(rows: Matrix) -> Answer:
            calls.append(name)
            return _mean(rows)

        return _way(name, function)

    ways = [(OURS, logged("a")), ("numpy", logged("b")), ("torch", logged("c"))]
    found, left_out = measure_rule("mean", ROWS, ways, EFFORT, _say)
    assert calls[-9:] == ["a", "b", "c"] * 3
    assert [len(one.seconds) for one in found] == [3, 3, 3]
    assert left_out == []


def test_one_call_is_timed_even_without_a_budget() -> None:
    effort = Effort(repeats=5, budget_s=0.0, limit_s=60.0)
    found, _ = measure_rule("mean", ROWS, [(OURS, _way("a", _mean))], effort, _say)
    assert [len(one.seconds) for one in found] == [1]


def test_differences_from_the_first_are_in_units_of_the_rows() -> None:
    unit = float(np.sqrt(np.mean(ROWS**2)))
    ways = [
        (OURS, _way("a", _mean)),
        ("numpy", _way("b", lambda rows: _mean(rows) + np.float32(unit))),
        ("torch", _way("c", lambda rows: _mean(rows) * np.nan)),
    ]
    found, _ = measure_rule("mean", ROWS, ways, EFFORT, _say)
    assert found[0].max_diff == 0.0
    assert found[1].max_diff == pytest.approx(1.0, rel=1e-5)
    assert found[2].max_diff is None
    assert [one.differing_share for one in found] == [0.0, 1.0, 1.0]


def test_what_takes_too_long_is_left_out_after_a_small_call() -> None:
    rows = make_rows(48, 1 << 15, seed=0)
    seen: list[tuple[int, ...]] = []

    def record(part: Matrix) -> Answer:
        seen.append(part.shape)
        return _mean(part)

    ways = [(OURS, _way("a", record, rows_power=30)), ("flwr", _way("b", record, rows_power=30))]
    effort = Effort(repeats=1, budget_s=60.0, limit_s=1e-9)
    found, left_out = measure_rule("mean", rows, ways, effort, _say)
    assert [one.peer for one in found] == [OURS]
    (one,) = left_out
    assert (one.peer, one.rule, one.way, one.n, one.d) == ("flwr", "mean", "b", 48, 1 << 15)
    assert one.reason.startswith("one call takes about")
    assert (24, 1 << 14) in seen


def test_small_calls_that_cost_too_much_are_judged_by_larger_ones() -> None:
    rows = make_rows(96, 1 << 14, seed=0)
    seen: list[int] = []

    def record(part: Matrix) -> Answer:
        seen.append(len(part))
        return _mean(part)

    limits = Effort(repeats=1, budget_s=60.0, limit_s=0.0)
    measure_rule("mean", rows, [(OURS, _way("a", record, rows_power=3))], limits, _say)
    assert list(dict.fromkeys(seen)) == [24, 48, 96]


def test_what_does_not_fit_the_memory_is_left_out() -> None:
    ways = [(OURS, _way("a", _mean)), ("byzfl", _way("b", _mean, copies=1e12))]
    _, left_out = measure_rule("mean", ROWS, ways, EFFORT, _say)
    (one,) = left_out
    assert one.reason == "needs up to 2400000 GB"


def test_what_fails_is_left_out_and_told() -> None:
    def fail(_: Matrix) -> Answer:
        message = "no such luck"
        raise ValueError(message)

    _, left_out = measure_rule(
        "mean", ROWS, [(OURS, _way("a", _mean)), ("flwr", _way("b", fail))], EFFORT, _say
    )
    assert [one.reason for one in left_out] == ["failed: ValueError: no such luck"]
    with pytest.raises(ValueError, match="no such luck"):
        measure_rule("mean", ROWS, [(OURS, _way("a", fail))], EFFORT, _say)


def test_the_fastest_way_of_each_library_counts() -> None:
    kept = fastest_ways(
        [
            _contender(OURS, "ours", [3.0, 1.0, 2.0]),
            _contender("numpy", "slow at its best", [0.9, 9.0, 9.0]),
            _contender("numpy", "fast", [1.0, 1.0, 1.0]),
            _contender("torch", "only", [5.0]),
        ]
    )
    assert [one.way.name for one in kept] == ["ours", "fast", "only"]


def test_figures_follow_from_the_median_time() -> None:
    size, results, left_out = measure_size(
        (7, 2000), ["krum", "mean"], {}, EFFORT, seed=0, say=_say
    )
    assert left_out == []
    for one, rule in zip(results, ["krum", "mean"], strict=True):
        assert (one.n, one.d, one.rule, one.peer) == (7, 2000, rule, OURS)
        assert one.gb_per_s == pytest.approx(4 * 7 * 2000 / one.ms / 1e6)
        assert one.read_once_multiple == pytest.approx(one.ms / size.read_once.ms)
        assert one.times_fedagg == 1.0
        assert one.runs == 3
        assert 0 < one.min_ms <= one.ms
    assert results[0].gflops == pytest.approx(7 * 8 * 2000 / results[0].ms / 1e6)
    assert results[1].gflops is None
