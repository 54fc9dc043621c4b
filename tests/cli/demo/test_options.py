"""Options that would do nothing or cannot work are refused before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.contradictions import OptionsError
from cli.demo.options import DEMO, RUNS, DemoOptions
from cli.device.population import POPULATION, PopulationOptions
from cli.exit_codes import ExitCode
from cli.main import app
from simulation.attackers.attacks import ATTACKS
from tests.looped import looped

FLIP = "--attack sign-flip"
SHARED = "--mode shared"

# Arguments, and the options that are told, in order.
REFUSED = [
    ("--dataset cifar", ["dataset"]),
    ("--data-dir .", ["data-dir"]),
    ("--dataset mnist --data-dir /no/such/folder", ["data-dir"]),
    ("--alpha 0", ["alpha"]),
    ("--alpha nan", ["alpha"]),
    ("--devices 144", ["devices"]),
    ("--devices 500 --alpha 0.1", ["devices"]),
    ("--attack nonsense", ["attack"]),
    ("--attackers 3", ["attackers"]),
    (f"{FLIP} --attackers 0", ["attack"]),
    (f"{FLIP} --attackers 20", ["attackers"]),
    (f"{FLIP} --attackers 21", ["attackers"]),
    (f"{FLIP} --devices 1", ["attackers"]),
    ("--attack-scale 10", ["attack-scale"]),
    ("--attack-scale 1", ["attack-scale"]),
    ("--attack zero --attack-scale 2", ["attack-scale"]),
    ("--attack label-flip --attack-scale 2", ["attack-scale"]),
    (f"{SHARED} --attack wrap-half --attack-scale 2", ["attack-scale"]),
    (f"{FLIP} --attack-scale 0", ["attack-scale"]),
    (f"{FLIP} --attack-scale inf", ["attack-scale"]),
    ("--attackers 3 --attack-scale 2", ["attackers", "attack-scale"]),
    ("--mode secret", ["mode"]),
    ("--holders 5", ["holders"]),
    ("--threshold 3", ["threshold"]),
    ("--group-size 4", ["group-size"]),
    (f"{SHARED} --threshold 4 --holders 3", ["threshold"]),
    (f"{SHARED} --threshold 3 --holders 4", ["threshold"]),
    (f"{SHARED} --threshold 4", ["threshold"]),
    ("--attack wrap-half", ["attack"]),
    (f"{SHARED} --attack inconsistent-shares --compression rand-k", ["attack"]),
    ("--kill-coordinator-at-round 99", ["kill-coordinator-at-round"]),
    ("--kill-coordinator-at-round 16", ["kill-coordinator-at-round"]),
    ("--kill-coordinator-at-round 0", ["kill-coordinator-at-round"]),
    ("--kill-coordinator-at-round -1", ["kill-coordinator-at-round"]),
    ("--aggregator krumm", ["aggregator"]),
    ("--aggregator fltrust", ["aggregator"]),
    ("--aggregator nnm+", ["aggregator"]),
    ("--aggregator bucketing+aegis", ["aggregator"]),
    (f"{FLIP} --attackers 9 --aggregator krum", ["aggregator"]),
    (f"{FLIP} --attackers 5 --aggregator bulyan", ["aggregator"]),
    (f"{FLIP} --attackers 10 --aggregator trimmed-mean", ["aggregator"]),
    (f"{FLIP} --attackers 10 --aggregator nnm+median", ["aggregator"]),
    (f"{FLIP} --attackers 5 --aggregator bucketing+median", ["aggregator"]),
    (f"{FLIP} --attackers 6 --devices 14 --aggregator multi-krum", ["aggregator"]),
    ("--devices 2 --aggregator krum", ["aggregator"]),
    (f"{SHARED} {FLIP} --attackers 9 --aggregator multi-krum", ["aggregator"]),
    (f"{SHARED} --aggregator bulyan --group-size 10", ["aggregator"]),
    (f"{SHARED} --aggregator krum", ["aggregator"]),
    (f"{SHARED} --aggregator krum --group-size 4", ["aggregator"]),
    (f"{SHARED} --aggregator median", ["aggregator"]),
    (f"{SHARED} --group-size 1", ["group-size"]),
    (f"{SHARED} --group-size 17", ["group-size"]),
    (f"{SHARED} --devices 1", ["devices"]),
    ("--compression gzip", ["compression"]),
    (f"{SHARED} --compression top-k", ["compression"]),
    ("--compression-ratio 0.5", ["compression-ratio"]),
    ("--compression dense --compression-ratio 0.5", ["compression-ratio"]),
    ("--compression top-k --compression-ratio 0", ["compression-ratio"]),
    ("--compression top-k --compression-ratio nan", ["compression-ratio"]),
    ("--compression top-k --aggregator median", ["aggregator"]),
    ("--compression top-k --aggregator nnm+clip+mean", ["aggregator"]),
    ("--value-type float8", ["value-type"]),
    (f"{SHARED} --value-type int8", ["value-type"]),
    ("--epsilon 8", ["epsilon"]),
    ("--delta 1e-5", ["delta"]),
    ("--clipping-norm 1", ["clipping-norm"]),
    ("--dp --epsilon 0", ["epsilon"]),
    ("--dp --epsilon nan", ["epsilon"]),
    ("--dp --epsilon inf", ["epsilon"]),
    ("--dp --delta 1", ["delta"]),
    ("--dp --clipping-norm inf", ["clipping-norm"]),
    (f"{SHARED} --dp --group-size 4", ["group-size"]),
    ("--dp --aggregator median", ["aggregator"]),
]


@looped("arguments, told", REFUSED, ids=[one for one, _ in REFUSED])
def test_each_is_told_in_one_line_that_names_it(arguments: str, told: list[str]) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments.split()])
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [["fedagg:", f"--{name}:"] for name in told]


def test_a_folder_to_keep_must_be_empty_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    for path, reason in ((tmp_path, "must be empty"), (tmp_path / "precious", "is no folder")):
        result = CliRunner().invoke(app, ["demo", "--keep-dir", str(path)])
        assert result.exit_code == ExitCode.USAGE
        assert result.stderr == f"fedagg: --keep-dir: {path} {reason}\n"


def options(**changes: object) -> DemoOptions:
    """Options with some of them given; those of a population are told apart by name."""
    of_population = {
        name: value for name, value in changes.items() if hasattr(PopulationOptions(), name)
    }
    of_demo = {name: value for name, value in changes.items() if name not in of_population}
    population = replace(PopulationOptions(), given=frozenset(changes), **of_population)  # type: ignore[arg-type]
    return replace(DemoOptions(), population=population, **of_demo)  # type: ignore[arg-type]


def test_what_works_is_left_alone() -> None:
    for changes in (
        {},
        {"attack": "sign-flip", "attackers": 8, "aggregator": "multi-krum", "attack_scale": 10.0},
        {"attack": "sign-flip", "attackers": 9, "aggregator": "nnm+trimmed-mean"},
        # More attackers than it could bear do not stop a rule that takes no number of them.
        {"attack": "sign-flip", "attackers": 12, "aggregator": "geometric-median"},
        {"devices": 1},
        {"devices": 143},
        {"devices": 1000, "alpha": float("inf")},
        {"rounds": 3, "kill_at_round": 3},
        {"mode": "shared", "holders": 7, "threshold": 4, "group_size": 4, "aggregator": "median"},
        {"mode": "shared", "attack": "wrap-half", "attackers": 2, "aggregator": "multi-krum"},
        {"mode": "shared", "aggregator": "distance-outliers"},
        {"compression": "top-k", "compression_ratio": 0.01, "aggregator": "multi-krum"},
        {"compression": "top-k", "compression_ratio": 0.5, "aggregator": "median"},
        {"value_type": "int8"},
        {"dp": True, "epsilon": 3.0, "delta": 1e-6, "clipping_norm": 0.5},
        {"dp": True, "mode": "shared", "compression": "projection", "aggregator": "multi-krum"},
    ):
        settings = options(**changes).settings()
        assert settings.scenario.num_rounds == changes.get("rounds", 15)


def test_every_row_of_the_tables_is_told_at_some_options() -> None:
    told = {row.setting for table in (POPULATION, DEMO, RUNS) for row in table}
    tested = {name for _, names in REFUSED for name in names} | {"keep-dir", "num-devices"}
    assert told == tested


def test_several_are_told_together() -> None:
    with pytest.raises(OptionsError) as raised:
        options(alpha=0.0, attackers=3).settings()
    assert [problem.split()[0] for problem in raised.value.problems] == ["--alpha:", "--attackers:"]


def test_help_lists_every_attack_aggregator_and_step() -> None:
    text = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).stdout
    words = set(text.replace(",", " ").replace(";", " ").replace(".", " ").split())
    served = {"mean", "median", "multi-krum", "krum", "bulyan", "flame", "distance-outliers"}
    steps = {"arc", "bucketing", "clip", "nnm"}
    assert {*ATTACKS, *served, *steps} <= words
    assert "fltrust" not in words  # it needs data of the server's
