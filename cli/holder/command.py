"""`fedagg share-holder`: the parties that hold shares of updates, and the committee they form."""

import asyncio
import base64
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.exit_codes import CliError
from cli.holder.committee_files import COMMITTEE_FILE, CommitteePlan, write_committee
from cli.output import FormatOption, Output, OutputFormat
from cli.serve.command import supervise
from cli.serve.service import HOLDER_PROGRAM, ReadyPipe, holder_spec, server_template
from monitoring.logs import LogFormat, configure_logging, get_logger
from security.errors import SecurityError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import (
    Committee,
    HolderIdentity,
    dump_committee,
    load_committee,
)
from server.config import load_holder_config
from server.config.durability import Durability
from simulation.fleet.device_spec import device_id

app = typer.Typer(help="Share holders of shared rounds.", no_args_is_help=True)

_log: Final = get_logger("fedagg.share_holder")


@app.command("keys")
def keys(
    out: Annotated[Path, typer.Option("--out", help="File for the secrets; must not exist.")],
    index: Annotated[int, typer.Option("--index", min=1, max=7, help="Number in the committee.")],
    name: Annotated[str, typer.Option("--name", help="Name, for people.")],
    address: Annotated[str, typer.Option("--address", help="host:port where it will answer.")],
    identity: Annotated[
        Path | None,
        typer.Option("--identity", help="File for the public identity; default: printed."),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Make the secrets of a new share holder, and tell its public identity as JSON.

    The secrets never leave the holder's host; the identity goes to whoever writes the committee
    down.
    """
    with Output(output_format):
        holder = HolderSecrets.generate(secrets.token_bytes)
        public = _dump_identity(holder.identity(index=index, name=name, address=address))
        _write_secret(out, holder.to_json())
        if identity is None:
            sys.stdout.write(public)
        else:
            identity.write_text(public, encoding="utf-8")


@app.command("committee")
def committee(
    identities: Annotated[list[Path], typer.Argument(help="Identities, one file a holder.")],
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=7, help="Shares that open a sum.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the committee.")],
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Write a committee down: the file that coordinator, holders and devices are all given."""
    with Output(output_format) as output:
        formed = _form(identities, threshold)
        out.write_bytes(dump_committee(formed) + b"\n")
        digest, num_holders = formed.sha256.hex(), len(formed.holders)
        if output.is_json:
            output.json({"committee_sha256": digest, "holders": num_holders})
        else:
            output.line(f"{out}: {threshold} of {num_holders} holders, committee {digest}")


@app.command("rehearsal")
def rehearsal(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything.")],
    holders: Annotated[int, typer.Option("--holders", min=2, max=7, help="Share holders.")] = 5,
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=7, help="Shares that open a sum.")
    ] = 3,
    devices: Annotated[
        int, typer.Option("--devices", min=1, max=1000, help="Simulated devices to certify.")
    ] = 10,
    address: Annotated[
        str, typer.Option("--address", help="host:port of holder {}, its number in the braces.")
    ] = "holder-{}:50061",
    listen: Annotated[
        str, typer.Option("--listen", help="host:port where each listens.")
    ] = "0.0.0.0:50061",
    http: Annotated[str, typer.Option("--http", help="host:port of each /ready.")] = "",
    metrics: Annotated[str, typer.Option("--metrics", help="host:port of each /metrics.")] = "",
    min_members: Annotated[
        int, typer.Option("--min-members", min=2, help="Fewest updates that holders open.")
    ] = 2,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Write keys, certificates and configurations of a whole committee, to try it out.

    One person then has every key: it shows how things work and protects nobody. Does nothing where
    the folder holds a committee already.
    """
    with Output(output_format) as output:
        path = out / COMMITTEE_FILE
        if not path.exists():
            plan = CommitteePlan(
                threshold=threshold,
                addresses=[address.format(number) for number in range(1, holders + 1)],
                listen=[listen] * holders,
                min_members=min_members,
                min_group_size=min_members,
                durability=Durability.MACHINE,
                http=http,
                metrics=metrics,
            )
            write_committee(plan, out.absolute(), [device_id(index) for index in range(devices)])
        digest = load_committee(path.read_bytes()).sha256.hex()
        if output.is_json:
            output.json({"committee": str(path), "committee_sha256": digest})
        else:
            output.line(f"{path}: committee {digest}")


@app.command("serve")
def serve(
    config: Annotated[
        Path,
        typer.Option("--config", help="Configuration file; see docs/samples/share-holder.toml."),
    ],
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Run a share holder until SIGTERM; one that dies is started again.

    Logs go to standard error.
    """
    with Output(output_format) as output:
        settings = load_holder_config(config)
        log_format: LogFormat = "json" if output.is_json else "auto"
        configure_logging(level=settings.log.level, log_format=log_format, stream=sys.stderr)
        programs = {HOLDER_PROGRAM: ("--config", str(config))}
        with server_template(programs) as template, ReadyPipe() as pipe:
            holder = holder_spec(
                "share-holder", config, pipe, template=template, log_format=log_format
            )
            index = settings.holder.index
            asyncio.run(
                supervise((*template.specs, holder), _log, grpc=settings.listen.grpc, index=index)
            )


def _form(identities: list[Path], threshold: int) -> Committee:
    """Put identities together, in the order of their indices."""
    try:
        members = [json.loads(path.read_bytes()) for path in identities]
        members.sort(key=lambda member: int(member["index"]))
        document = {"version": 1, "threshold": threshold, "holders": members}
        return load_committee(json.dumps(document).encode())
    except SecurityError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        msg = "every identity must be a file that `fedagg share-holder keys` wrote"
        raise CliError(msg) from error


def _dump_identity(identity: HolderIdentity) -> str:
    fields = {
        "index": identity.index,
        "name": identity.name,
        "address": identity.address,
        "signing_key": base64.b64encode(identity.signing_key).decode("ascii"),
        "sealing_key": base64.b64encode(identity.sealing_key).decode("ascii"),
    }
    return json.dumps(fields, indent=2) + "\n"


def _write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, and never over another one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
