"""`fedagg admin create-ca` and `enrollment-token`: how devices come to trust and be trusted."""

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.exit_codes import CliError, ExitCode
from cli.output import FormatOption, Output, OutputFormat
from security.certificates.credentials import create_authority, issue_server_certificate
from security.certificates.enrollment import MIN_KEY_BYTES, NONCE_BYTES, issue_token

_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600


def create_ca(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; made if absent.")],
    name: Annotated[str, typer.Option("--name", help="Common name of the authority.")] = (
        "fedagg device authority"
    ),
    days: Annotated[int, typer.Option("--days", min=1, help="Lifetime of the certificates.")] = (
        3650
    ),
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            "--server-name",
            help="DNS name or IP address of the server; repeat it. None: no server certificate.",
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Create a certificate authority, an enrollment key and, if named, a server certificate.

    Existing files are never overwritten. Private keys can be read by their owner only.
    """
    with Output(output_format) as output:
        now_s, valid_for_s = time.time(), float(days * _DAY_S)
        authority = create_authority(name=name, now_s=now_s, valid_for_s=valid_for_s)
        files = {
            "ca.pem": authority.certificate_pem,
            "ca-key.pem": authority.private_key_pem,
            "enrollment.key": secrets.token_hex(MIN_KEY_BYTES).encode() + b"\n",
        }
        if server_name:
            server = issue_server_certificate(
                authority, names=server_name, now_s=now_s, valid_for_s=valid_for_s
            )
            files["server.pem"] = server.certificate_pem
            files["server-key.pem"] = server.private_key_pem
        written = _write_new(out, files)
        if output.is_json:
            output.json({"files": written})
        else:
            output.line("\n".join(written))


def enrollment_token(
    key_file: Annotated[
        Path, typer.Option("--key-file", help="The enrollment key, as the server is configured.")
    ],
    device_id: Annotated[str, typer.Option("--device-id", help="The only device it enrolls.")],
    valid_hours: Annotated[int, typer.Option("--valid-hours", min=1, help="Lifetime.")] = 24,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Issue a one-time token with which a device gets its certificate."""
    with Output(output_format) as output:
        expires_at_s = int(time.time()) + valid_hours * _HOUR_S
        token = issue_token(
            device_id,
            key=key_file.read_text(encoding="utf-8").strip().encode(),
            expires_at_s=expires_at_s,
            nonce=secrets.token_bytes(NONCE_BYTES),
        )
        if output.is_json:
            output.json({"device_id": device_id, "token": token, "expires_at_s": expires_at_s})
        else:
            output.line(token)


def _write_new(folder: Path, files: dict[str, bytes]) -> list[str]:
    """Write all of the files or none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = [name for name in files if (folder / name).exists()]
    if there:
        msg = f"{folder} holds {', '.join(there)} already; nothing was written"
        raise CliError(msg, exit_code=ExitCode.FAILURE)
    for name, content in files.items():
        mode = 0o600 if "key" in name else 0o644
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
    return [str(folder / name) for name in files]
