"""`fedagg device`: simulated devices, real clients with real data, against a running server."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.exit_codes import CliError, ExitCode
from cli.output import FormatOption, Output, OutputFormat
from cli.signals import terminate_as_interrupt
from simulation.attacks import SHARED_ATTACKS
from simulation.device_fleet import device_fleet
from simulation.device_spec import DeviceSpec
from simulation.event_log import read_events
from simulation.scenarios import Scenario

_DEFAULTS: Final = Scenario()


def device(  # each is an option
    server: Annotated[
        list[str],
        typer.Option(
            "--server", help="host:port or dns:///host:port; repeat it for several coordinators."
        ),
    ],
    task: Annotated[str, typer.Option("--task", help="Learning task to serve.")],
    dataset: Annotated[str, typer.Option("--dataset", help="digits, mnist or fashion-mnist.")] = (
        "digits"
    ),
    device_index: Annotated[
        int, typer.Option("--device-index", min=0, help="Position of the first device.")
    ] = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="Devices to run.")] = 1,
    num_devices: Annotated[
        int | None,
        typer.Option(
            "--num-devices", min=1, help="Devices the data is split over; default: index + count."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Dirichlet concentration of the split; inf: even.")
    ] = _DEFAULTS.alpha,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root of every draw.")] = 0,
    attack: Annotated[str, typer.Option("--attack", help="What malicious devices do.")] = "none",
    attackers: Annotated[
        int, typer.Option("--attackers", min=0, help="The first so many devices are malicious.")
    ] = 0,
    attack_scale: Annotated[float, typer.Option("--attack-scale", help="Strength, > 0.")] = 1.0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where the data lies.")
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", help="Keep the devices' event logs here.")
    ] = None,
    max_rounds: Annotated[
        int | None, typer.Option("--max-rounds", min=1, help="Stop after so many updates each.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Speak plain text.")] = False,
    root_ca: Annotated[
        Path | None,
        typer.Option("--root-ca", help="Certificates that may sign the server's (PEM)."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="The device's certificate chain (PEM).")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option("--private-key", help="Key of the certificate (PEM).")
    ] = None,
    committee: Annotated[
        Path | None,
        typer.Option("--committee", help="Share holders of a shared task (JSON)."),
    ] = None,
    identity_dir: Annotated[
        Path | None,
        typer.Option(
            "--identity-dir", help="Certificates and keys of all devices: ID.pem and ID-key.pem."
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Run simulated devices until their task is finished, --max-rounds or SIGTERM."""
    with Output(output_format) as output, ExitStack() as stack:
        if insecure != (root_ca is None):
            msg = "give either --insecure or --root-ca"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        if certificate is not None and count > 1:
            msg = "--certificate names one device: it needs --count 1"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        if committee is not None and certificate is None and identity_dir is None:
            msg = "--committee needs --identity-dir, or --certificate and --private-key"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        if attack in SHARED_ATTACKS and committee is None:
            msg = f"--attack {attack} is one on shares: it needs --committee"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        if log_dir is None:
            log_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-")))
        log_dir.mkdir(parents=True, exist_ok=True)
        scenario = Scenario(
            dataset=dataset,
            num_devices=num_devices or device_index + count,
            alpha=alpha,
            seed=seed,
            attack=attack,
            num_attackers=attackers,
            attack_scale=attack_scale,
        )
        specs = [
            DeviceSpec(
                scenario=scenario,
                index=index,
                servers=tuple(server),
                task=task,
                log_dir=log_dir,
                data_dir=data_dir,
                max_rounds=max_rounds,
                root_ca=root_ca,
                certificate=certificate,
                private_key=private_key,
                committee=committee,
                identity_dir=identity_dir,
            )
            for index in range(device_index, device_index + count)
        ]
        if specs[-1].index >= scenario.num_devices:
            msg = f"--num-devices={num_devices} must exceed the last index {specs[-1].index}"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        run_devices(specs, output)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSummary:
    """What became of one device; `outcome` is its last event: finished, stopped or failed."""

    device: str
    outcome: str
    accepted: int
    bytes_up: int
    bytes_down: int
    error: str = ""


def run_devices(specs: Sequence[DeviceSpec], output: Output) -> None:
    """Run a fleet to its end, or to SIGTERM or SIGINT, and tell what it did.

    Raises:
        CliError: if a server can never accept one of the devices, or a process died.
    """
    fleet = device_fleet(specs)
    with terminate_as_interrupt():
        fleet.start()
        try:
            result, is_stopped = fleet.wait(), False
        except KeyboardInterrupt:
            result, is_stopped = fleet.stop(), True
    summaries = [summary_of(spec.log_path) for spec in specs if spec.log_path.exists()]
    _tell(summaries, output)
    failed = [summary for summary in summaries if summary.outcome == "failed"]
    if failed:
        msg = f"{len(failed)} of {len(specs)} devices failed; {failed[0].device}: {failed[0].error}"
        raise CliError(msg)
    if any(result.exit_codes) and not is_stopped:
        msg = f"device processes ended with statuses {result.exit_codes}"
        raise CliError(msg)


def summary_of(log_path: Path) -> DeviceSummary:
    """Read one device's log."""
    events = list(read_events([log_path]))
    last = events[-1] if events else {"event": "killed"}
    return DeviceSummary(
        device=log_path.stem,
        outcome=str(last["event"]),
        accepted=sum(event["event"] == "acked" for event in events),
        bytes_up=int(last.get("bytes_up") or 0),
        bytes_down=int(last.get("bytes_down") or 0),
        error=str(last.get("error") or ""),
    )


def _tell(summaries: Sequence[DeviceSummary], output: Output) -> None:
    if output.is_json:
        output.json({"devices": [asdict(summary) for summary in summaries]})
        return
    columns = ("device", "outcome", "accepted", "bytes up", "bytes down")
    output.table(
        columns, [(s.device, s.outcome, s.accepted, s.bytes_up, s.bytes_down) for s in summaries]
    )
