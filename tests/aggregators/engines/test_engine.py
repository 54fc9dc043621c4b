"""Every rule gives the same bits on every engine; what is not installed is refused in a line."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Final

import numpy as np
import pytest

from aggregators.engines import engine_options
from aggregators.engines.engine import ENGINES, LOCAL, Engine, LocalEngine, make_engine
from aggregators.engines.engine_options import LIBRARIES, EngineOptions, engine_problem
from aggregators.errors import AggregationError
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.registry import traits_of
from aggregators.rows.dense_rows import DenseRows
from tests.aggregators.contract import EVERYTHING, Case, apply, case_of, same_result
from tests.aggregators.matrices import honest_rows, same_bits
from tests.looped import looped

FEW: Final = (12, 2 * CELL_COLUMNS + 37)  # products in float64; no whole vector at the end
MANY: Final = (23, CELL_COLUMNS + 1000 + 5)  # products in float32


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.long] if name == "ray" else [])
        for name in LIBRARIES
        if name != "local"
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every engine but the local one, where its library is installed."""
    name = str(request.param)
    if find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{name} is not installed")
    opened = make_engine(name, EngineOptions(ray_workers=2))
    yield opened
    opened.close()
    opened.close()


@cache
def case(shape: tuple[int, int]) -> Case:
    rows = honest_rows(1, *shape)
    rows[1] *= 1000
    rows[4] = rows[3] * np.float32(1 + 1e-6)
    rows[:, ::5] -= 1.0
    readout = np.random.default_rng(2).standard_normal((6, 4, 1)) * np.eye(1, shape[1])
    return case_of(rows, is_uneven=True, readout=readout)


@pytest.mark.slow  # a cluster starts
@pytest.mark.process
@pytest.mark.timeout(400)  # within seconds, on a busy machine within minutes
@looped("shape", [FEW, MANY])
@pytest.mark.parametrize("rule", EVERYTHING)
def test_every_rule_has_the_bits_of_the_local_engine(
    engine: Engine, rule: str, shape: tuple[int, int]
) -> None:
    knows = traits_of(rule).needs
    expected = apply(rule, case(shape), num_byzantine=2, knows=knows)
    found = apply(rule, case(shape), num_byzantine=2, knows=knows, engine=engine)
    assert same_result(expected, found)
    assert (expected.gram is None) == (found.gram is None)
    if expected.gram is not None and found.gram is not None:
        assert same_bits(expected.gram.inner, found.gram.inner)
        assert same_bits(expected.gram.squared_distances, found.gram.squared_distances)


def test_the_local_engine_is_the_default_and_needs_nothing() -> None:
    engine = make_engine("local", EngineOptions(num_threads=3))
    assert engine == LocalEngine(num_threads=3)
    assert make_engine("local") == LOCAL
    rows = engine.rows(list(honest_rows(2, 3, 50)))
    assert isinstance(rows, DenseRows)
    with pytest.raises(AggregationError, match="at least one row"):
        engine.rows([])
    engine.close()


def test_every_engine_has_its_library_told() -> None:
    assert list(ENGINES) == list(LIBRARIES)


def test_an_engine_nobody_knows_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"engine='spark' must be one of local, torch, ray"):
        make_engine("spark")


@pytest.mark.parametrize("name", ["torch", "ray"])
def test_an_engine_whose_library_is_missing_is_refused_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_options, "find_spec", lambda _: None)
    message = f"engine={name!r} needs the extra fedagg[{name}], which is not installed"
    assert engine_problem(name) == message
    with pytest.raises(AggregationError) as caught:
        make_engine(name)
    assert str(caught.value) == message
    assert engine_problem("local") is None
