"""`fedagg device`: simulated devices, real clients with real data, against a running server."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.contradictions import refuse
from cli.device.population import (
    ATTACK_HELP,
    DATASET_HELP,
    DEFAULTS,
    POPULATION,
    PopulationOptions,
    given,
)
from cli.exit_codes import CliError
from cli.output import FormatOption, Output, OutputFormat
from cli.serve.signals import terminate_as_interrupt
from server.config.contradictions import Contradiction
from simulation.attackers.attacks import SHARED_ATTACKS
from simulation.fleet.device_fleet import device_fleet
from simulation.fleet.device_spec import DeviceSpec
from simulation.fleet.event_log import read_events

app: Final = typer.Typer(add_completion=False)


@app.command("device")
def device(  # each is an option
    context: typer.Context,
    server: Annotated[
        list[str],
        typer.Option(
            "--server", help="host:port or dns:///host:port; repeat it for several coordinators."
        ),
    ],
    task: Annotated[str, typer.Option("--task", help="Learning task to serve.")],
    dataset: Annotated[str, typer.Option("--dataset", help=DATASET_HELP)] = DEFAULTS.dataset,
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
    ] = DEFAULTS.alpha,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root of every draw.")] = 0,
    attack: Annotated[str, typer.Option("--attack", help=ATTACK_HELP)] = DEFAULTS.attack,
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
        options = DeviceOptions(
            population=PopulationOptions(
                given=given(context),
                dataset=dataset,
                devices=num_devices or device_index + count,
                devices_option="num-devices",
                alpha=alpha,
                seed=seed,
                attack=attack,
                attackers=attackers,
                attack_scale=attack_scale,
                data_dir=data_dir,
            ),
            device_index=device_index,
            count=count,
            log_dir=log_dir,
            insecure=insecure,
            root_ca=root_ca,
            certificate=certificate,
            private_key=private_key,
            committee=committee,
            identity_dir=identity_dir,
        )
        refuse(POPULATION, options.population)
        refuse(DEVICE, options)
        if log_dir is None:
            log_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-")))
        log_dir.mkdir(parents=True, exist_ok=True)
        scenario = options.population.scenario()
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
        run_devices(specs, output)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """The options of `fedagg device` that can contradict each other; see its help."""

    population: PopulationOptions
    device_index: int = 0
    count: int = 1
    log_dir: Path | None = None
    insecure: bool = False
    root_ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    committee: Path | None = None
    identity_dir: Path | None = None

    @property
    def shows_certificates(self) -> bool:
        """Whether anybody is shown the devices' certificates."""
        return self.root_ca is not None or self.committee is not None


def _absent(option: str) -> Contradiction[DeviceOptions]:
    """Return a row for a file that must be there."""

    def absent(options: DeviceOptions) -> object:
        path: Path | None = getattr(options, option.replace("-", "_"))
        return path if path is not None and not path.exists() else None

    return Contradiction(option, absent, "{1} does not exist")


DEVICE: Final[tuple[Contradiction[DeviceOptions], ...]] = (
    Contradiction(
        "num-devices",
        lambda o: o.device_index + o.count > o.population.devices,
        "{0.population.devices} must exceed the last index: --device-index {0.device_index} and"
        " --count {0.count} ask for more devices",
    ),
    Contradiction(
        "insecure",
        lambda o: o.insecure == (o.root_ca is not None),
        "either it or --root-ca must be given, and not both",
    ),
    _absent("root-ca"),
    _absent("certificate"),
    _absent("private-key"),
    _absent("committee"),
    _absent("identity-dir"),
    Contradiction(
        "certificate",
        lambda o: (o.certificate is None) is not (o.private_key is None),
        "it and --private-key go together",
    ),
    Contradiction(
        "certificate",
        lambda o: o.certificate is not None and o.count > 1,
        "names one device: it needs --count 1",
    ),
    Contradiction(
        "identity-dir",
        lambda o: o.certificate is not None and o.identity_dir is not None,
        "does nothing with --certificate",
    ),
    Contradiction(
        "committee",
        lambda o: o.committee is not None and o.certificate is None and o.identity_dir is None,
        "needs --identity-dir, or --certificate and --private-key",
    ),
    Contradiction(
        "certificate",
        lambda o: o.certificate is not None and not o.shows_certificates,
        "does nothing without --root-ca or --committee",
    ),
    Contradiction(
        "identity-dir",
        lambda o: o.identity_dir is not None and not o.shows_certificates,
        "does nothing without --root-ca or --committee",
    ),
    Contradiction(
        "attack",
        lambda o: o.population.attack in SHARED_ATTACKS and o.committee is None,
        "{0.population.attack} is one on shares: it needs --committee",
    ),
    Contradiction(
        "log-dir",
        lambda o: o.log_dir is not None and o.log_dir.exists() and not o.log_dir.is_dir(),
        "{0.log_dir} is no folder",
    ),
)


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
