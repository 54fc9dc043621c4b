from cli.exit_codes import CliError, ExitCode, exit_code_of
from security.errors import CredentialError
from server.config import ConfigError
from simulation.errors import DatasetError, ScenarioError
from tests.looped import looped


@looped(
    "error, code",
    [
        (CliError("x", exit_code=ExitCode.REFUSED), ExitCode.REFUSED),
        (CliError("x"), ExitCode.FAILURE),
        (ConfigError("x"), ExitCode.CONFIG),
        (ScenarioError("x"), ExitCode.USAGE),
        (DatasetError("x"), ExitCode.FAILURE),
        (CredentialError("x"), ExitCode.FAILURE),
        (FileNotFoundError("x"), ExitCode.FAILURE),
    ],
)
def test_an_error_the_user_can_solve_has_a_status(error: Exception, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_a_defect_has_none() -> None:
    assert exit_code_of(ZeroDivisionError()) is None
    assert exit_code_of(ValueError()) is None
