"""Every registered rule passes the same suite, driven by what it declares."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES, STEPS, traits_of
from aggregators.rows.dense_rows import as_rows
from aggregators.rule import Context
from tests.aggregators.contract import (
    EVERY_RULE,
    EVERYTHING,
    PIPELINES,
    Case,
    apply,
    by_value,
    case_of,
    known_to,
    least_rows,
    same_result,
)
from tests.aggregators.matrices import (
    ANY_FLOAT,
    SMALLEST,
    TIED_FLOAT,
    Matrix,
    honest_rows,
    integer_rows,
    matrices,
    same_bits,
)
from tests.looped import looped

every_rule = pytest.mark.parametrize("rule", EVERY_RULE)
everything = pytest.mark.parametrize("rule", EVERYTHING)
FEW = settings(max_examples=25)
NUM_ROWS = 11

# Sending every row k times, with k f in place of f, changes nothing.
DUPLICATION_INVARIANT = (
    "auto-geometric-median",
    "caf",
    "centered-clipping",
    "geometric-median",
    "mean",
    "mean-around-median",
    "median",
    "trimmed-mean",
    "nnm+trimmed-mean",
)


def close(first: Matrix, second: Matrix, *, steps: float = 8.0, scale: float | None = None) -> bool:
    """Tell whether vectors agree up to some float32 roundings of their largest entry."""
    largest = float(np.abs(second.astype(np.float64)).max()) if scale is None else scale
    error = np.abs(first.astype(np.float64) - second.astype(np.float64)).max()
    return bool(error <= steps * (2.0**-24 * largest + SMALLEST))


# 1. The order of the rows.


def assert_order_is_free(rule: str, case: Case, order: list[int], num_byzantine: int = 1) -> None:
    knows = known_to(rule)
    first = apply(rule, case, num_byzantine=num_byzantine, knows=knows)
    second = apply(rule, case.permuted(order), num_byzantine=num_byzantine, knows=knows)
    assert np.isfinite(first.vector).all()
    assert same_bits(first.vector, second.vector)
    assert by_value(case.rows, first) == by_value(case.rows[order], second)


@everything
@FEW
@given(
    rows=matrices(min_rows=7, elements=ANY_FLOAT) | matrices(min_rows=7, elements=TIED_FLOAT),
    random=st.randoms(use_true_random=False),
)
def test_any_finite_rows_in_any_order_give_the_same_bits(
    rule: str, rows: Matrix, random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert_order_is_free(rule, case_of(rows), order)
    assert_order_is_free(rule, case_of(rows, is_uneven=True), order)


@everything
def test_twenty_shuffles_of_rows_with_equal_ones_give_the_same_bits(rule: str) -> None:
    rows = honest_rows(1, 13, 40)
    rows[4:7] = rows[3]
    rows[9] *= 1000
    case = case_of(rows, is_uneven=True)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(13).tolist()
        assert_order_is_free(rule, case, order, num_byzantine=2)


# 2 to 4. Translation, scale, coordinates.


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if traits_of(rule).translation])
@FEW
@given(seed=st.integers(0, 10_000), shift=st.integers(-(10**6), 10**6))
def test_translation_moves_the_result(rule: str, seed: int, shift: int) -> None:
    # Whole numbers below 2**24: moving them does not round, only the result is rounded.
    rows = integer_rows(seed, NUM_ROWS, 20)
    case = case_of(rows, root_update=rows[3] + np.float32(7), center=rows[5] - np.float32(9))
    found = apply(rule, case.moved(shift)).vector.astype(np.float64) - shift
    expected = apply(rule, case).vector.astype(np.float64)
    assert np.abs(found - expected).max() <= 2.0**-23 * (abs(shift) + 1000) + 1e-5


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if not traits_of(rule).translation])
def test_rules_that_declare_no_translation_have_none(rule: str) -> None:
    rows = honest_rows(2, NUM_ROWS, 20) - np.float32(1)
    rows[0] = -20 * rows[1]
    case = case_of(rows)
    expected = apply(rule, case).vector
    violations = [
        shift
        for shift in (1, 1000, 100_000)
        if not close(apply(rule, case.moved(shift)).vector - shift, expected, scale=shift + 1.0)
    ]
    assert violations


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if traits_of(rule).scale])
@FEW
@given(seed=st.integers(0, 10_000), exponent=st.integers(-100, 100))
def test_scaling_scales_the_result(rule: str, seed: int, exponent: int) -> None:
    case = case_of(honest_rows(seed, NUM_ROWS, 20))
    factor = 2.0**exponent
    # A power of two scales without rounding; eigenvectors are found with some.
    expected = apply(rule, case).vector * np.float32(factor)
    assert close(apply(rule, case.scaled(factor)).vector, expected, steps=2)


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if traits_of(rule).scale])
@looped("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_scaling_by_a_number_that_rounds_scales_the_result(rule: str, factor: float) -> None:
    case = case_of(honest_rows(3, NUM_ROWS, 20))
    expected = apply(rule, case).vector.astype(np.float64) * factor
    assert close(apply(rule, case.scaled(factor)).vector, expected.astype(np.float32))


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if not traits_of(rule).scale])
def test_rules_that_declare_no_scale_have_none(rule: str) -> None:
    rows = honest_rows(4, NUM_ROWS, 20) - np.float32(1)
    rows[0] = -20 * rows[1]
    case = case_of(rows)
    violations = [
        factor
        for factor in (1e-3, 0.1, 10.0, 1e3)
        if not close(
            apply(rule, case.scaled(factor)).vector,
            apply(rule, case).vector * np.float32(factor),
            steps=1e4,
        )
    ]
    assert violations


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if traits_of(rule).coordinates])
@FEW
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 60))
def test_permuting_coordinates_permutes_the_result(rule: str, seed: int, dim: int) -> None:
    case = case_of(honest_rows(seed, NUM_ROWS, dim))
    order = np.random.default_rng(seed).permutation(dim).tolist()
    found = apply(rule, case.with_columns(order)).vector
    # Sums over coordinates are rounded in another order.
    assert close(found, apply(rule, case).vector[order], steps=2)


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if not traits_of(rule).coordinates])
def test_rules_that_depend_on_where_coordinates_stand_do(rule: str) -> None:
    # Wide rows that stand out in some coordinates only: who does depends on the sample. Narrow
    # ones, where the order of the rows' values decides between subsets that are equally good.
    wide = honest_rows(5, NUM_ROWS, 20_000)
    for row in range(NUM_ROWS):
        wide[row, 40 * row : 40 * row + 40] = -50.0
    examples = [wide, *(honest_rows(seed, NUM_ROWS, 3) for seed in range(40))]
    violations = []
    for seed, rows in enumerate(examples):
        case = case_of(rows)
        order = np.random.default_rng(seed).permutation(rows.shape[1])
        found = apply(rule, case.with_columns(order.tolist()), num_byzantine=2).vector
        expected = apply(rule, case, num_byzantine=2).vector[order]
        violations.append(not close(found, expected, steps=1e4))
    assert any(violations)


# 5. Rows that are all equal, and very few rows.


@everything
@looped("value", [0.0, -0.0, -3.0, 1e-30, SMALLEST, 3e38])
def test_equal_rows_are_their_own_aggregate(rule: str, value: float) -> None:
    rows = np.full((NUM_ROWS, 3), value, dtype=np.float32)
    # The server's own update is equal too: FLTrust gives the result its length.
    result = apply(rule, case_of(rows, root_update=rows[0]))
    assert close(result.vector, rows[0], steps=4)


@everything
def test_equal_rows_that_differ_between_coordinates_are_their_own_aggregate(rule: str) -> None:
    rows = np.repeat(honest_rows(6, 1, 50), NUM_ROWS, axis=0)
    result = apply(rule, case_of(rows, root_update=rows[0], center=rows[0]), knows=known_to(rule))
    assert close(result.vector, rows[0], steps=4)


@everything
@looped("extra", [0, 1, 2])
def test_the_fewest_rows_a_rule_accepts_are_enough(rule: str, extra: int) -> None:
    for num_byzantine in (0, 1, 2):
        num_rows = least_rows(rule, num_byzantine) + extra
        result = apply(rule, honest_rows(7, num_rows, 5), num_byzantine=num_byzantine)
        assert np.isfinite(result.vector).all()
        assert result.weights.shape == result.selected.shape == (num_rows,)


@everything
@looped("dim", [1, 2])
def test_very_few_coordinates_are_enough(rule: str, dim: int) -> None:
    for rows in (integer_rows(8, NUM_ROWS, dim), np.zeros((NUM_ROWS, dim), dtype=np.float32)):
        assert np.isfinite(apply(rule, rows, knows=known_to(rule)).vector).all()


# 6. What rules are when nobody is suspected.


@pytest.mark.parametrize(
    "rule",
    [
        "bulyan",
        "caf",
        "dnc",
        "mean-around-median",
        "minimum-diameter",
        "monna",
        "multi-krum",
        "nnm+krum",
        "nnm+median",
        "nnm+trimmed-mean",
        "trimmed-mean",
    ],
)
@FEW
@given(rows=matrices(min_rows=3, elements=st.integers(-1000, 1000).map(float)))
def test_without_suspects_it_is_the_mean(rule: str, rows: Matrix) -> None:
    assert close(apply(rule, rows, num_byzantine=0).vector, apply("mean", rows).vector, scale=1e3)


@looped(
    "rule, settings_, equal",
    [
        ("multi-krum", {"num_to_select": 1}, "krum"),
        ("trimmed-mean", {"trim": 5}, "median"),
        ("trimmed-mean", {"trim": 0}, "mean"),
        ("centered-clipping", {"clipping_radius": 1e6}, "mean"),
        ("norm-threshold", {"norm_factor": 1e6}, "mean"),
        ("clip+krum", {"norm_factor": 1e6}, "krum"),
        ("bucketing+median", {"bucket_size": 1}, "median"),
        ("arc+geometric-median", {"num_byzantine": 0}, "geometric-median"),
    ],
)
def test_settings_reduce_a_rule_to_another(
    rule: str, settings_: dict[str, float], equal: str
) -> None:
    rows = honest_rows(9, NUM_ROWS, 30)
    rows[3] *= 10
    arguments = {"num_byzantine": 1} | settings_
    found = apply(rule, rows, **arguments).vector  # type: ignore[arg-type]  # counts are whole
    assert close(found, apply(equal, rows).vector)


def test_more_steps_bring_the_geometric_median_nearer() -> None:
    rows = honest_rows(10, 9, 30)
    rows[:3] += 3

    def objective(max_steps: int | None) -> float:
        vector = apply("geometric-median", rows, max_steps=max_steps).vector.astype(np.float64)
        return float(np.sqrt(((rows - vector) ** 2).sum(axis=1)).sum())

    assert objective(None) < objective(3) < objective(1)


def test_more_steps_of_centred_clipping_leave_less_of_the_first_centre() -> None:
    case = case_of(honest_rows(10, 9, 30), center=np.full(30, 100, dtype=np.float32))
    shares = [
        apply("centered-clipping", case, knows=["center"], max_steps=steps, clipping_radius=20.0)
        for steps in (1, 3)
    ]
    assert shares[0].weights.sum() < shares[1].weights.sum()


# Duplication.


@pytest.mark.parametrize("rule", DUPLICATION_INVARIANT)
@looped("times", [2, 3])
def test_sending_every_row_several_times_changes_nothing(rule: str, times: int) -> None:
    rows = honest_rows(11, NUM_ROWS, 20)
    rows[0] *= 30
    case = case_of(rows)
    again = apply(rule, case.repeated(times), num_byzantine=2 * times).vector
    assert close(again, apply(rule, case, num_byzantine=2).vector, steps=20)


# What every result holds.


@everything
def test_results_have_the_promised_shapes_and_types(rule: str) -> None:
    result = apply(rule, honest_rows(12, NUM_ROWS, 30), num_byzantine=2)
    assert result.vector.shape == (30,)
    assert result.vector.dtype == np.float32
    assert result.weights.shape == result.selected.shape == (NUM_ROWS,)
    assert result.weights.dtype == np.float64
    assert result.selected.dtype == np.bool_
    if result.scores is not None:
        assert result.scores.shape == (NUM_ROWS,)
        assert result.scores.dtype == np.float64
        assert np.isfinite(result.scores).all()
    if result.gram is not None:
        assert result.gram.num_rows == NUM_ROWS


@everything
@FEW
@given(rows=matrices(min_rows=7, elements=ANY_FLOAT | TIED_FLOAT))
def test_weights_sum_to_at_most_one_and_are_zero_where_excluded(rule: str, rows: Matrix) -> None:
    result = apply(rule, rows)
    assert (result.weights >= 0.0).all()
    # FLTrust gives short rows the length of the server's own update.
    if rule != "fltrust":
        assert result.weights.sum() <= 1.0 + 1e-9
    assert not result.weights[~result.selected].any()


@everything
def test_gram_of_the_result_is_in_the_order_of_the_rows(rule: str) -> None:
    rows = honest_rows(13, NUM_ROWS, 30)[::-1]
    gram = apply(rule, rows).gram
    if gram is not None:
        wide = rows.astype(np.float64)
        np.testing.assert_allclose(gram.inner, wide @ wide.T, rtol=1e-12)


@everything
def test_rows_may_be_separate_arrays(rule: str) -> None:
    case = case_of(honest_rows(14, NUM_ROWS, 30))
    context = case.context(*traits_of(rule).needs)
    rows = as_rows([row.copy() for row in case.rows])
    config = AggregatorConfig(rule=rule, num_malicious_nodes=1)
    assert same_result(make_rule(config)(rows, context), apply(rule, case))


@everything
def test_nothing_that_goes_in_is_modified(rule: str) -> None:
    case = case_of(honest_rows(15, NUM_ROWS, 30), is_uneven=True)

    def contents() -> list[bytes]:
        floats = [case.rows, case.root_update, case.center]
        return [*(part.tobytes() for part in floats), case.weights.tobytes(), case.trust.tobytes()]

    before = contents()
    apply(rule, case, knows=known_to(rule))
    assert contents() == before


@everything
@looped("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(rule: str, bad: float) -> None:
    rows = honest_rows(16, NUM_ROWS, 30)
    case = case_of(rows)
    rows[2, 11] = bad
    # What the model answered is of its own, and may be finite all the same.
    readout = case.readout.copy()
    readout[:, :, 11] = 0.0
    clean = np.where(np.isfinite(rows), rows, 0.0).astype(np.float32)
    context = case_of(clean, readout=readout).context(*traits_of(rule).needs)
    config = AggregatorConfig(rule=rule, num_malicious_nodes=1)
    with pytest.raises(AggregationError, match="rows must be finite"):
        make_rule(config)(as_rows(rows), context)


@everything
def test_a_second_call_gives_the_same_bits(rule: str) -> None:
    case = case_of(honest_rows(17, NUM_ROWS, 30))
    config = AggregatorConfig(rule=rule, num_malicious_nodes=1)
    configured = make_rule(config)
    rows, context = as_rows(case.rows), case.context(*traits_of(rule).needs)
    assert same_result(configured(rows, context), configured(rows, context))


# What is refused.


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if traits_of(rule).tolerance])
@looped("num_byzantine", [1, 2, 3])
def test_too_few_rows_are_refused_with_the_numbers_that_would_do(
    rule: str, num_byzantine: int
) -> None:
    least = least_rows(rule, num_byzantine)
    rows = honest_rows(18, least - 1, 5)
    with pytest.raises(TooFewUpdatesError) as caught:
        apply(rule, rows, num_byzantine=num_byzantine)
    message = str(caught.value)
    tolerance = traits_of(rule).tolerance
    assert tolerance is not None
    assert f"of {rule} must satisfy n >= {tolerance}" in message or "trim=" in message
    assert f"got n={least - 1}" in message
    if "trim=" not in message:
        assert f"num_byzantine={num_byzantine} " in message
        assert f"at least {least} updates would do" in message
        assert f"num_byzantine of at most {num_byzantine - 1}" in message
    # Both pieces of advice are good.
    apply(rule, honest_rows(18, least, 5), num_byzantine=num_byzantine)
    apply(rule, rows, num_byzantine=num_byzantine - 1)


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if traits_of(rule).needs])
def test_what_a_rule_cannot_work_without_is_asked_for(rule: str) -> None:
    for need in traits_of(rule).needs:
        left = [name for name in traits_of(rule).needs if name != need]
        with pytest.raises(AggregationError, match=f"needs {need}, which is missing"):
            apply(rule, honest_rows(19, NUM_ROWS, 5), knows=left)


@pytest.mark.parametrize("rule", ["fltrust", "monna", "centered-clipping"])
def test_server_vectors_of_another_length_are_refused(rule: str) -> None:
    short = honest_rows(20, 1, 4)[0]
    case = case_of(honest_rows(20, NUM_ROWS, 5), root_update=short, center=short)
    with pytest.raises(AggregationError, match=r"shape \(4,\)"):
        apply(rule, case, knows=["root_update", "center"])


def test_state_of_another_rule_is_refused() -> None:
    rows = honest_rows(21, NUM_ROWS, 5)
    context = Context(weights=np.ones(NUM_ROWS), state=object())
    with pytest.raises(AggregationError, match="state of type object must be what aegis returned"):
        make_rule(AggregatorConfig(rule="aegis"))(as_rows(rows), context)


def test_state_goes_in_and_comes_out() -> None:
    rule = make_rule(AggregatorConfig(rule="aegis"))
    rows = as_rows(honest_rows(22, NUM_ROWS, 5))
    first = rule(rows, Context(weights=np.ones(NUM_ROWS)))
    second = rule(rows, Context(weights=np.ones(NUM_ROWS), state=first.state))
    assert first.state is not None
    assert second.state != first.state


def test_trim_overrides_the_number_of_malicious_nodes() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]], dtype=np.float32)
    assert apply("trimmed-mean", rows).vector.tolist() == [2.0]
    assert apply("trimmed-mean", rows, trim=0).vector.tolist() == [np.float32(21.2)]


def test_names_are_lower_case_words() -> None:
    assert all(name.replace("-", "").isalpha() and name.islower() for name in (*RULES, *STEPS))
    assert not set(RULES) & set(STEPS)


def test_every_step_is_part_of_a_pipeline_under_test() -> None:
    assert {step for rule in PIPELINES for step in rule.split("+")[:-1]} == set(STEPS)


# 8. Attackers that are left out might as well not be there.


@pytest.mark.parametrize("rule", ["dnc", "krum", "minimum-diameter", "monna", "multi-krum"])
@looped("seed", range(5))
def test_gross_attackers_do_not_change_who_is_selected(rule: str, seed: int) -> None:
    honest = honest_rows(seed, 8, 30)
    rows = np.vstack([honest, honest[:1].repeat(3, axis=0) * np.float32(1000)])
    known = case_of(honest)
    case = case_of(rows, root_update=known.root_update)
    among_all = apply(rule, case, num_byzantine=3)
    assert among_all.selected[:8].tolist() == apply(rule, known, num_byzantine=0).selected.tolist()
    assert not among_all.selected[8:].any()
    assert close(among_all.vector, apply(rule, known, num_byzantine=0).vector)
