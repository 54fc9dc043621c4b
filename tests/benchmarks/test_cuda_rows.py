"""The check of a GPU, tried out on the CPU: it finds agreement, and disagreement."""

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from aggregators.engines.engine import make_engine  # noqa: E402
from aggregators.engines.engine_options import EngineOptions  # noqa: E402
from aggregators.registry import RULES  # noqa: E402
from aggregators.rows.torch_rows import TorchRows  # noqa: E402
from benchmarks import cuda_rows  # noqa: E402

pytestmark = pytest.mark.slow


def test_every_rule_agrees_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--n", "17", "--d", "100", "--format", "json"]
    assert cuda_rows.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "cpu"
    found = report["agreements"]
    assert {one["rule"] for one in found} == {*RULES, *cuda_rows.PIPELINES}
    assert all(one["agrees"] for one in found)


def test_rows_of_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TorchRows, "median", lambda rows: rows.combine(rows.norms() * 0.0 + 1.0, rows.num_rows)
    )
    engine = make_engine("torch", EngineOptions(torch_device="cpu"))
    found = list(cuda_rows.compare(engine, num_updates=17, dim=100, names=("mean", "median")))
    assert {one.rule for one in found if not one.agrees} == {"median"}
    assert max(one.differing for one in found) > 50


def test_without_a_device_it_skips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_rows.main([]) == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n"
