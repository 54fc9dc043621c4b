import json
import stat
import time
from pathlib import Path

from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from security.certificates.enrollment import verify_token
from server.config import parse_config


def test_the_files_make_a_configuration_with_tls_and_enrollment(tmp_path: Path) -> None:
    out = tmp_path / "keys"
    result = CliRunner().invoke(
        app, ["admin", "create-ca", "--out", str(out), "--server-name", "localhost"]
    )
    assert result.exit_code == ExitCode.OK, result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "ca-key.pem",
        "ca.pem",
        "enrollment.key",
        "server-key.pem",
        "server.pem",
    ]
    for path in out.iterdir():
        is_secret = "key" in path.name
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == (0 if is_secret else 0o044)
    config = parse_config(
        {
            "listen": {"enrollment": "127.0.0.1:50052"},
            "tls": {
                "certificate": str(out / "server.pem"),
                "private-key": str(out / "server-key.pem"),
                "client-ca": str(out / "ca.pem"),
            },
            "enrollment": {
                "ca-certificate": str(out / "ca.pem"),
                "ca-private-key": str(out / "ca-key.pem"),
                "token-key": (out / "enrollment.key").read_text().strip(),
            },
            "task": [{"name": "digits", "initial-model": "digits.safetensors"}],
        },
        {},
    )
    assert config.tls.is_complete
    assert config.enrollment.is_complete


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ca-key.pem").write_text("precious")
    result = CliRunner().invoke(app, ["admin", "create-ca", "--out", str(tmp_path)])
    assert result.exit_code == ExitCode.FAILURE
    assert [path.name for path in tmp_path.iterdir()] == ["ca-key.pem"]
    assert (tmp_path / "ca-key.pem").read_text() == "precious"


def test_a_token_enrolls_its_device_under_the_key(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["admin", "create-ca", "--out", str(tmp_path)])
    key_file = tmp_path / "enrollment.key"
    result = CliRunner().invoke(
        app,
        ["admin", "enrollment-token", "--key-file", str(key_file), "--device-id", "phone-7",
         "--valid-hours", "2", "--format", "json"],
    )  # fmt: skip
    answer = json.loads(result.stdout)
    key = key_file.read_text().strip().encode()
    grant = verify_token(answer["token"], key=key, now_s=time.time())
    assert grant.device_id == "phone-7"
    assert grant.expires_at_s == answer["expires_at_s"]
    assert abs(answer["expires_at_s"] - time.time() - 7200) < 600  # made a moment ago


def test_a_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    key_file = tmp_path / "short.key"
    key_file.write_text("short")
    result = CliRunner().invoke(
        app, ["admin", "enrollment-token", "--key-file", str(key_file), "--device-id", "d"]
    )
    assert result.exit_code == ExitCode.FAILURE
    assert "32 bytes" in result.stderr


def test_without_its_key_only_the_chain_of_a_log_is_checked(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text("")
    result = CliRunner().invoke(app, ["admin", "audit", "verify", str(log)])
    assert result.exit_code == ExitCode.OK
    assert "chain only, no key" in result.stdout
    assert not (tmp_path / "audit.key").exists()


def test_a_key_that_was_named_must_be_there(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text("")
    arguments = ["admin", "audit", "verify", str(log), "--key-file", str(tmp_path / "absent")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.FAILURE
    assert "absent" in result.stderr
    assert not (tmp_path / "absent").exists()
