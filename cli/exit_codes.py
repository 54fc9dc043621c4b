"""Exit statuses of every command, and the error that carries one.

0    done
1    failed, as where an address is in use by another process
2    wrong arguments
3    wrong configuration
4    the server cannot be reached
5    the server refused
130  interrupted, by SIGINT or SIGTERM; what serves until then ends with 0
"""

from enum import IntEnum

from aggregators.errors import AggregationError
from monitoring.audit_entry import AuditError
from privacy.errors import PrivacyError
from security.errors import SecurityError
from server.config import ConfigError
from server.processes.supervisor import StartupError
from server.storage.embedded import EmbeddedStoreError
from simulation.errors import ScenarioError, SimulationError
from updates.errors import CompressionError, ModelError


class ExitCode(IntEnum):
    """What the process tells its caller."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERRUPTED = 130


class CliError(Exception):
    """A command failed for a reason the user can act on."""

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# Errors of the packages below that are the user's to solve; any other is a defect and shows its
# stack.
_KNOWN: dict[type[Exception], ExitCode] = {
    ConfigError: ExitCode.CONFIG,
    ScenarioError: ExitCode.USAGE,
    SimulationError: ExitCode.FAILURE,
    AggregationError: ExitCode.USAGE,
    CompressionError: ExitCode.USAGE,
    ModelError: ExitCode.USAGE,
    PrivacyError: ExitCode.USAGE,
    AuditError: ExitCode.FAILURE,
    SecurityError: ExitCode.FAILURE,
    EmbeddedStoreError: ExitCode.FAILURE,
    StartupError: ExitCode.FAILURE,
    OSError: ExitCode.FAILURE,
}


def exit_code_of(error: BaseException) -> ExitCode | None:
    """Return the status an error ends the process with; None: it is a defect."""
    if isinstance(error, CliError):
        return error.exit_code
    if isinstance(error, StartupError) and error.status == ExitCode.CONFIG:
        return ExitCode.CONFIG  # as the process that ended has told
    return next((_KNOWN[base] for base in type(error).__mro__ if base in _KNOWN), None)
