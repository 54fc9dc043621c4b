"""Options of `fedagg device` that would do nothing or cannot work."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.device.command import DEVICE
from cli.exit_codes import ExitCode
from cli.main import app

FLIP = "--attack sign-flip"
PAIR = "--certificate here --private-key here"

# `here` is a file that exists.
REFUSED = [
    ("", ["insecure"]),
    ("--insecure --root-ca here", ["insecure"]),
    ("--root-ca absent", ["root-ca"]),
    ("--insecure --committee absent --identity-dir .", ["committee"]),
    ("--root-ca here --identity-dir absent", ["identity-dir"]),
    ("--root-ca here --certificate absent --private-key here", ["certificate"]),
    ("--root-ca here --certificate here --private-key absent", ["private-key"]),
    ("--root-ca here --certificate here", ["certificate"]),
    ("--root-ca here --private-key here", ["certificate"]),
    (f"--root-ca here {PAIR} --count 2", ["certificate"]),
    (f"--root-ca here {PAIR} --identity-dir .", ["identity-dir"]),
    (f"--insecure {PAIR}", ["certificate"]),
    ("--insecure --identity-dir .", ["identity-dir"]),
    ("--insecure --committee here", ["committee"]),
    ("--insecure --num-devices 1 --count 2", ["num-devices"]),
    ("--insecure --num-devices 5 --device-index 5", ["num-devices"]),
    ("--insecure --num-devices 144", ["num-devices"]),
    (f"--insecure --count 3 {FLIP}", ["attack"]),
    ("--insecure --count 3 --attackers 1", ["attackers"]),
    (f"--insecure --count 3 {FLIP} --attackers 3", ["attackers"]),
    ("--insecure --count 3 --attack wrap-half --attackers 1", ["attack"]),
    ("--insecure --attack-scale 3", ["attack-scale"]),
    ("--insecure --data-dir .", ["data-dir"]),
    ("--insecure --log-dir here", ["log-dir"]),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=[one for one, _ in REFUSED])
def test_each_is_told_in_one_line_that_names_it(
    tmp_path: Path, arguments: str, told: list[str]
) -> None:
    (tmp_path / "here").touch()
    names = {"here": str(tmp_path / "here"), "absent": str(tmp_path / "absent")}
    given = [names.get(word, word) for word in arguments.split()]
    server = ["--server", "127.0.0.1:1", "--task", "t"]
    result = CliRunner().invoke(app, ["device", *server, *given])
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [["fedagg:", f"--{name}:"] for name in told]


def test_every_row_of_the_table_is_told_at_some_options() -> None:
    assert {row.setting for row in DEVICE} <= {name for _, names in REFUSED for name in names}
