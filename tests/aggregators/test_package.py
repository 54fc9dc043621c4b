import subprocess
import sys

import pytest

import aggregators
from aggregators import errors
from tests.looped import looped

HEAVY = ("numba", "llvmlite", "torch", "scipy", "sklearn", "ray")


def loaded_after(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter; list the packages it has loaded."""
    listing = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{statement}\n{listing}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import aggregators",
        "from aggregators import AggregationError, AggregatorConfig",
        "import aggregators.server_optimizer",
    ],
)
def test_a_device_does_not_load_the_rules_and_their_compiler(statement: str) -> None:
    loaded = loaded_after(statement)
    assert "aggregators" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.slow
def test_a_server_loads_the_compiler_but_neither_torch_nor_ray() -> None:
    loaded = loaded_after("from aggregators import IntegratedFederatedAggregator")
    assert "numba" in loaded
    assert loaded.isdisjoint({"torch", "ray", "sklearn"})


@looped("name", aggregators.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(aggregators, name).__name__ == name


def test_public_names_are_listed_once_in_order() -> None:
    assert sorted(set(aggregators.__all__)) == aggregators.__all__
    assert set(aggregators.__all__) == set(aggregators._HOMES)


def test_a_public_name_is_that_of_its_module() -> None:
    assert aggregators.AggregationError is errors.AggregationError


@pytest.mark.parametrize("name", ["GradientAgregator", "__wrapped__", "krum_"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'aggregators' has no attribute '{name}'"):
        getattr(aggregators, name)


def test_an_unknown_name_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match="GradientAgregator"):
        exec("from aggregators import GradientAgregator")  # noqa: S102  # a fixed text
