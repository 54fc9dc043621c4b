import sys
from pathlib import Path

import pytest

from benchmarks.compare import compared, main

FAKE = """
import json, pathlib, sys
assert sys.argv[1:3] == ["throughput", "--case"] and sys.argv[4:6] == ["--windows", "1"]
with pathlib.Path({log!r}).open("a") as log:
    log.write({name!r})
row = {{"case": sys.argv[3], "updates_per_s": {rate}, "ratio": 0.5}}
row |= {{"cpu_us": 90.0, "store_cpu_us": 10.0}}
print(json.dumps({{"results": {{"throughput": [row]}}}}))
"""


def tree(folder: Path, name: str, rate: float, module: str) -> Path:
    made = folder / name
    (made / ".venv" / "bin").mkdir(parents=True)
    (made / ".venv" / "bin" / "python").symlink_to(sys.executable)
    home = made / "benchmarks" / module
    home.parent.mkdir(parents=True)
    for package in {made / "benchmarks", home.parent}:
        (package / "__init__.py").touch()
    text = FAKE.format(log=str(folder / "log"), name=name, rate=rate)
    home.write_text(text)
    return made


def test_a_ratio_is_taken_within_a_pair() -> None:
    slow = {"updates_per_s": 100.0, "cpu_us": 80.0, "store_cpu_us": 20.0, "ratio": 0.25}
    fast = {"updates_per_s": 150.0, "cpu_us": 40.0, "store_cpu_us": 10.0, "ratio": 0.5}
    row = compared("unary", [(slow, fast), (fast, slow), (slow, slow)])
    assert row["case"] == "unary"
    assert (row["least_ratio"], row["median_ratio"], row["largest_ratio"]) == (0.6667, 1.0, 1.5)
    assert row["cpu_ratio"] == row["beside_echo"] == 1.0
    row = compared("unary", [(slow, fast)])
    assert (row["beside_echo"], row["cpu_ratio"]) == (2.0, 0.5)
    assert (row["old_per_s"], row["new_per_s"]) == (100.0, 150.0)


@pytest.mark.process
def test_each_tree_measures_itself_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tree(tmp_path, "o", 1000.0, "run.py")
    new = tree(tmp_path, "n", 1250.0, "service/__main__.py")
    arguments = [str(old), str(new), "--case", "batched", "--pairs", "3", "--windows", "1"]
    assert main(arguments) == 0
    assert (tmp_path / "log").read_text() == "onnoon"
    text = capsys.readouterr().out
    assert "1.25" in text
    assert "--pairs 3 --windows 1" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--pairs", "0"], "--pairs=0 must be at least 1"),
        (["--windows", "-1"], "--windows=-1 must be at least 1"),
        (["--case", "none"], "no case is named none"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["a", "b", *arguments])
    assert problem in capsys.readouterr().err
