"""Model files made, and brought in from other people's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from safetensors.numpy import save
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from simulation.models import initial_weights
from updates.vectors import decode_model, encode_model

Tensors = dict[str, NDArray[np.generic]]

# Not in the order of the alphabet, which a file without an order comes back in.
MODEL: Tensors = {
    "z": np.array([[1.5, -2.0]], dtype=np.float32),
    "a": np.array([3.0], dtype=np.float32),
}


def models(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


def imported(folder: Path, data: bytes, *arguments: object) -> Result:
    source = folder / "source"
    source.write_bytes(data)
    return models("import", source, "--output", folder / "model.safetensors", *arguments)


def assert_model(folder: Path, expected: Tensors) -> None:
    found, _ = decode_model((folder / "model.safetensors").read_bytes())
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor)


def assert_refused(folder: Path, result: Result, reason: str) -> None:
    """Refused in one line, and nothing is left beside the source."""
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert reason in line
    assert [path.name for path in folder.iterdir()] == ["source"]


def test_a_fresh_model_is_the_one_that_the_demonstration_starts_from(tmp_path: Path) -> None:
    path = tmp_path / "new" / "digits.safetensors"
    result = models("init", "digits", "--output", path, "--seed", "3", "--format", "json")
    assert result.exit_code == ExitCode.OK, result.stderr
    assert path.read_bytes() == encode_model(initial_weights("digits", 3))
    assert json.loads(result.stdout)["parameters"] == 4810
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    result = models("init", "resnet", "--output", tmp_path / "model")
    assert result.exit_code == ExitCode.USAGE
    assert "digits" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("precious")
    refused = models("init", "digits", "--output", path)
    assert refused.exit_code == ExitCode.USAGE
    assert "--force" in refused.stderr
    assert path.read_text() == "precious"
    assert models("init", "digits", "--output", path, "--force").exit_code == ExitCode.OK
    assert path.read_bytes() == encode_model(initial_weights("digits", 0))
    assert "is a folder" in models("init", "digits", "--output", tmp_path, "--force").stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["list", "lines", "json"])
def test_safetensors_come_in_the_order_given(tmp_path: Path, kind: str) -> None:
    order = "z, a"
    if kind != "list":
        path = tmp_path / "order"
        path.write_text('["z", "a"]' if kind == "json" else "z\na\n")
        order = str(path)
    result = imported(tmp_path, save(MODEL), "--order", order)
    assert result.exit_code == ExitCode.OK, result.stderr
    assert_model(tmp_path, MODEL)


def test_an_order_that_the_file_records_is_kept(tmp_path: Path) -> None:
    data = encode_model({name: tensor.astype(np.float32) for name, tensor in MODEL.items()})
    assert imported(tmp_path, data).exit_code == ExitCode.OK
    assert_model(tmp_path, MODEL)
    (tmp_path / "model.safetensors").unlink()
    assert imported(tmp_path, data, "--order", "z,a").exit_code == ExitCode.OK
    (tmp_path / "model.safetensors").unlink()
    assert_refused(tmp_path, imported(tmp_path, data, "--order", "a,z"), "the file records")


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("", "give --order"),
        ("z,a,b", "--order names unknown tensors: b"),
        ("z", "--order does not name: a"),
        ("z,a,z", "--order repeats: z"),
        ('["z", 1]', "JSON list of names"),
    ],
)
def test_an_order_that_is_not_one_is_refused(tmp_path: Path, order: str, reason: str) -> None:
    arguments = ("--order", order) if order else ()
    assert_refused(tmp_path, imported(tmp_path, save(MODEL), *arguments), reason)


BFLOAT16 = (
    b"\x40\x00\x00\x00\x00\x00\x00\x00"
    b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}         '
    b"\x80\x3f\x20\xc0"  # 1.0 and -2.5
)


def test_other_numbers_are_converted_where_that_is_asked_for(tmp_path: Path) -> None:
    halves = save({"w": np.array([0.5, 65504.0], dtype=np.float16)})
    doubles = save({"w": np.array([0.5, 2.0**-40], dtype=np.float64)})
    whole = save({"w": np.array([3, 1 << 24], dtype=np.int64)})
    assert len(BFLOAT16) == 8 + 0x40 + 4
    for data, expected in (
        (halves, [0.5, 65504.0]),
        (doubles, [0.5, 2.0**-40]),
        (whole, [3.0, 2.0**24]),
        (BFLOAT16, [1.0, -2.5]),
    ):
        assert_refused(tmp_path, imported(tmp_path, data), "--convert lossless")
        for how in ("lossless", "round"):
            assert imported(tmp_path, data, "--convert", how).exit_code == ExitCode.OK
            assert_model(tmp_path, {"w": np.array(expected)})
            (tmp_path / "model.safetensors").unlink()


def test_numbers_that_float32_rounds_want_that_said(tmp_path: Path) -> None:
    for values in (np.array([0.1]), np.array([(1 << 24) + 1])):
        refused = imported(tmp_path, save({"w": values}), "--convert", "lossless")
        assert_refused(tmp_path, refused, "--convert round")
        assert imported(tmp_path, save({"w": values}), "--convert", "round").exit_code == 0
        assert_model(tmp_path, {"w": values.astype(np.float32)})
        (tmp_path / "model.safetensors").unlink()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        data = save({"w": np.array([1.0, value], dtype=np.float32)})
        assert_refused(tmp_path, imported(tmp_path, data), "'w' holds NaN or infinity")
    huge = save({"w": np.array([1e39])})
    assert_refused(tmp_path, imported(tmp_path, huge, "--convert", "round"), "beyond float32")
    flags = save({"w": np.array([True])})
    assert_refused(tmp_path, imported(tmp_path, flags, "--convert", "round"), "BOOL")
    empty = save({"w": np.zeros((0, 3), dtype=np.float32)})
    assert_refused(tmp_path, imported(tmp_path, empty), "no numbers")
    counters = save({"w": np.array([1], dtype=np.int64)})
    assert_refused(tmp_path, imported(tmp_path, counters), "--floats-only")
    assert_refused(tmp_path, imported(tmp_path, counters, "--floats-only"), "no numbers")
    cut = save(MODEL)[:-1]
    assert_refused(tmp_path, imported(tmp_path, cut, "--order", "z,a"), "no safetensors file")


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    result = models("import", tmp_path / "nothing", "--output", tmp_path / "model")
    assert result.exit_code == ExitCode.FAILURE
    assert str(tmp_path / "nothing") in result.stderr


def test_without_torch_one_line_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04")
    program = (
        "import sys; sys.modules['torch'] = None; from cli.main import main; "
        "sys.argv = ['fedagg', 'models', 'import', 'state.pt', '--output', 'model']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.splitlines() == [
        "fedagg: state.pt, no safetensors file, needs torch: pip install 'fedagg[torch]'"
    ]
