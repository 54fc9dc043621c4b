"""Whoever verifies an audit log in a script goes by the exit status."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from monitoring.audit_logger import AuditLogger
from tests.monitoring.test_audit_entry import ENTRY


def verified(log: Path) -> Result:
    return CliRunner().invoke(app, ["admin", "audit", "verify", str(log)])


def test_a_log_that_is_not_intact_ends_with_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    assert AuditLogger(log).append(ENTRY)
    assert verified(log).exit_code == ExitCode.OK
    log.write_text(log.read_text().replace(ENTRY.task, "another"))
    found = verified(log)
    assert found.exit_code == ExitCode.FAILURE
    assert "NOT intact" in found.stdout
    assert "line 1" in found.stderr
