"""Files that torch wrote; skipped where torch is not installed."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from updates.vectors import decode_model

torch = pytest.importorskip("torch")
torch_files = pytest.importorskip("cli.models.torch_files")


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    source, output = str(folder / "state.pt"), str(folder / "model.safetensors")
    result = CliRunner().invoke(app, ["models", "import", source, "-o", output, *arguments])
    return result.exit_code, result.stderr


def module() -> object:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def test_a_state_dict_keeps_names_values_and_order(tmp_path: Path) -> None:
    state = module().state_dict()  # type: ignore[attr-defined]  # torch's types are not loaded
    torch.save(state, tmp_path / "state.pt")
    code, text = run(tmp_path)
    assert code == ExitCode.USAGE
    assert "'1.num_batches_tracked' of type torch.int64 must be float32" in text
    code, text = run(tmp_path, "--floats-only")
    assert code == ExitCode.OK, text
    tensors, _ = decode_model((tmp_path / "model.safetensors").read_bytes())
    # As `TorchTrainer` exchanges them.
    assert list(tensors) == [name for name, value in state.items() if value.is_floating_point()]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name].numpy())


@pytest.mark.parametrize("type_name", ["float16", "bfloat16", "float64"])
def test_other_floats_are_converted_where_asked(tmp_path: Path, type_name: str) -> None:
    values = torch.tensor([[1.0, -2.5]]).to(getattr(torch, type_name))
    torch.save({"w": values}, tmp_path / "state.pt")
    code, text = run(tmp_path)
    assert (code, f"torch.{type_name}" in text) == (ExitCode.USAGE, True)
    assert run(tmp_path, "--convert", "lossless")[0] == ExitCode.OK
    tensors, _ = decode_model((tmp_path / "model.safetensors").read_bytes())
    assert tensors["w"].tolist() == [[1.0, -2.5]]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/fedagg-was-here",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "list, not a state_dict"),
        ({}, "not a state_dict"),
        ({"state_dict": {"w": torch.ones(1)}, "epoch": 3}, "'state_dict' is dict"),
        ({"w": torch.tensor([float("nan")])}, "NaN"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "torch.complex64 cannot be part"),
        ({"w": torch.eye(3).to_sparse()}, "cannot be part"),
        (Evil(), "neither safetensors nor a state_dict"),
        (torch.nn.Linear(1, 1), "neither safetensors nor a state_dict"),
    ],
    ids=["list", "empty", "checkpoint", "nan", "complex", "sparse", "code", "module"],
)
def test_what_is_no_state_dict_is_refused_in_one_line(
    tmp_path: Path, content: object, reason: str
) -> None:
    torch.save(content, tmp_path / "state.pt")
    code, text = run(tmp_path)
    assert code == ExitCode.USAGE
    (line,) = text.splitlines()
    assert reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert not Path("/tmp/fedagg-was-here").exists()  # noqa: S108


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02.", b"no model at all"])
def test_bytes_that_are_nothing_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(data)
    code, text = run(tmp_path)
    assert code == ExitCode.USAGE
    assert len(text.splitlines()) == 1


def test_an_order_is_not_for_a_state_dict(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "state.pt")
    code, text = run(tmp_path, "--order", "w")
    assert (code, "a state_dict has an order" in text) == (ExitCode.USAGE, True)


def test_what_is_written_comes_back() -> None:
    tensors = {"b": np.ones((2, 3), np.float32), "a": np.array([2.5], np.float32)}
    file = io.BytesIO()
    torch_files.write_state_dict(tensors, file)
    found = torch_files.read_state_dict(file.getvalue())
    assert found.order == ("b", "a")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found.tensors[name].values, tensor)
