"""Which device the torch engine takes, and how a missing one is told."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from aggregators.engines.engine_options import EngineOptions  # noqa: E402
from aggregators.engines.torch_engine import TorchEngine  # noqa: E402
from aggregators.errors import AggregationError  # noqa: E402
from aggregators.rows.torch_rows import TorchRows  # noqa: E402
from tests.aggregators.matrices import honest_rows, same_bits  # noqa: E402


def test_without_a_setting_it_is_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert TorchEngine(EngineOptions()).device == expected
    assert TorchEngine(EngineOptions(torch_device="cpu")).device == "cpu"


@pytest.mark.parametrize("device", ["cuda:77", "abacus", "meta:x"])
def test_a_device_that_cannot_be_used_is_refused_in_a_line(device: str) -> None:
    with pytest.raises(AggregationError, match=f"engine torch: device '{device}' cannot be used"):
        TorchEngine(EngineOptions(torch_device=device))


def test_its_rows_are_on_the_device() -> None:
    matrix = honest_rows(1, 5, 40)
    engine = TorchEngine(EngineOptions(torch_device="cpu", num_threads=1))
    rows = engine.rows(list(matrix))
    assert isinstance(rows, TorchRows)
    assert same_bits(rows.read(0, 40), matrix)
    engine.close()
