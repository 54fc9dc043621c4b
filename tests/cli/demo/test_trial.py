"""What a coordinator would refuse is refused before anything starts, by the name of an option."""

import pytest
from typer.testing import CliRunner

from cli.demo.trial import in_options
from cli.exit_codes import ExitCode
from cli.main import app


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("--mode shared --dp --clipping-norm 100", "--clipping-norm"),
        ("--dp --clipping-norm 1e30", "--clipping-norm"),
        (
            "--aggregator minimum-diameter --devices 60 --attack zero --attackers 20",
            "--attackers",
        ),
    ],
)
def test_it_is_told_in_one_line_and_nothing_starts(arguments: str, option: str) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments.split()])
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fedagg: {option}: ")


@pytest.mark.slow
def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    result = CliRunner().invoke(app, ["demo", "--dp", "--epsilon", "1e-9", "--delta", "1e-300"])
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr.startswith("fedagg: --epsilon: ")


def test_settings_are_told_as_the_options_that_lead_to_them() -> None:
    for problem, told in (
        ("task[1].privacy.epsilon: is low", "--epsilon: is low (privacy.epsilon)"),
        ("privacy.noise: is odd", "--epsilon: is odd (privacy.noise)"),
        ("sharing.sketch-dim: is odd", "--mode shared: is odd (sharing.sketch-dim)"),
        ("listen.grpc: is taken", "listen.grpc: is taken"),
        ("no setting at all", "no setting at all"),
    ):
        assert in_options(problem) == told
