from collections.abc import Iterable

from benchmarks.harness.cases import Benchmark, Case, Measure, Settings, measure
from benchmarks.harness.figures import Figures


def _rows_of(name: str) -> Measure:
    def rows(repeats: int) -> Iterable[Figures]:
        yield {"case": name, "repeats": repeats}

    return rows


BENCHMARK = Benchmark(
    cases=[
        Case(name="small", full=_rows_of("small"), quick=_rows_of("tiny")),
        Case(name="large", full=_rows_of("large"), quick=None),
    ],
    repeats=7,
)


def test_every_case_is_measured_as_often_as_the_benchmark_says() -> None:
    rows = measure(BENCHMARK, Settings(names=["x"]))
    assert rows == [{"case": "small", "repeats": 7}, {"case": "large", "repeats": 7}]


def test_people_may_ask_for_some_cases_and_another_number() -> None:
    settings = Settings(names=["x"], case="lar", repeats=2)
    assert measure(BENCHMARK, settings) == [{"case": "large", "repeats": 2}]
    assert not settings.is_whole
    assert settings.arguments("x") == "x --case 'lar' --repeats 2"


def test_a_quick_run_measures_little_once() -> None:
    settings = Settings(names=["x"], repeats=5, is_quick=True)
    assert measure(BENCHMARK, settings) == [{"case": "tiny", "repeats": 1}]
    assert not settings.is_whole
