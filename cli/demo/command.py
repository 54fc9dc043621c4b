"""`fedagg demo`: from nothing to a trained model on this machine."""

import asyncio
import os
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import click
import typer
from rich.console import Console
from typer.core import TyperCommand

from cli.demo.options import METHODS, MODES, VALUE_TYPES, DemoOptions
from cli.demo.report import DemoReport
from cli.demo.run import Demo, DemoPlace
from cli.demo.view import DemoView
from cli.device.population import ATTACK_HELP, DATASET_HELP, DEFAULTS, PopulationOptions, given
from cli.exit_codes import ExitCode
from cli.guardian import Guardian
from cli.output import FormatOption, Output, OutputFormat
from cli.serve.signals import terminate_as_interrupt
from security.secret_sharing.threshold import MAX_HOLDERS
from server.config import ENVIRONMENT_PREFIX

_OPTIONS: Final = DemoOptions()
_MAX_SEED: Final = (1 << 63) - 1
_ATTACKERS_SHARE: Final = 0.2

app: Final = typer.Typer(add_completion=False)


class DemoCommand(TyperCommand):
    """Lists the aggregators in its help, which takes the time to load them."""

    def get_help(self, ctx: click.Context) -> str:
        """Write the help."""
        from cli.demo.rules import rule_help  # noqa: PLC0415  # brings the rules' compiler

        for parameter in self.params:
            if parameter.name == "aggregator" and isinstance(parameter, click.Option):
                parameter.help = rule_help()
        return super().get_help(ctx)


@app.command("demo", cls=DemoCommand)
def demo(
    context: typer.Context,
    devices: Annotated[
        int, typer.Option("--devices", min=1, max=1000, help="Devices, each a real gRPC client.")
    ] = DEFAULTS.num_devices,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds to train.")] = (
        _OPTIONS.rounds
    ),
    aggregator: Annotated[
        str, typer.Option("--aggregator", help="A rule, after any steps: docs/Aggregation.md.")
    ] = _OPTIONS.aggregator,
    attack: Annotated[str, typer.Option("--attack", help=ATTACK_HELP)] = DEFAULTS.attack,
    attackers: Annotated[
        int | None,
        typer.Option(
            "--attackers", min=0, help="Malicious devices; default: none, or a fifth under attack."
        ),
    ] = None,
    attack_scale: Annotated[
        float, typer.Option("--attack-scale", help="Strength of the attack, > 0.")
    ] = DEFAULTS.attack_scale,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Dirichlet concentration of the data; inf: even.")
    ] = DEFAULTS.alpha,
    dataset: Annotated[str, typer.Option("--dataset", help=DATASET_HELP)] = DEFAULTS.dataset,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=_MAX_SEED, help="Root of every draw.")
    ] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where mnist or fashion-mnist lies.")
    ] = None,
    keep_dir: Annotated[
        Path | None,
        typer.Option("--keep-dir", help="Keep models, audit log and logs in this new folder."),
    ] = None,
    kill_coordinator_at_round: Annotated[
        int | None,
        typer.Option("--kill-coordinator-at-round", help="Kill the leading coordinator there."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help=f"{' or '.join(MODES)}: there nobody sees an update.")
    ] = _OPTIONS.mode,
    holders: Annotated[
        int,
        typer.Option("--holders", min=2, max=MAX_HOLDERS, help="Share holders of the shared mode."),
    ] = _OPTIONS.holders,
    threshold: Annotated[
        int,
        typer.Option("--threshold", min=2, max=MAX_HOLDERS, help="Shares that open a sum."),
    ] = _OPTIONS.threshold,
    group_size: Annotated[
        int,
        typer.Option(
            "--group-size", min=0, help="Updates in each opened sum; 0: one sum of all selected."
        ),
    ] = _OPTIONS.group_size,
    compression: Annotated[
        str, typer.Option("--compression", help=f"{', '.join(METHODS)}.")
    ] = _OPTIONS.compression,
    compression_ratio: Annotated[
        float, typer.Option("--compression-ratio", help="Numbers sent, as a share of all.")
    ] = _OPTIONS.compression_ratio,
    value_type: Annotated[
        str | None, typer.Option("--value-type", help=f"{', '.join(VALUE_TYPES)}.")
    ] = _OPTIONS.value_type,
    dp: Annotated[
        bool, typer.Option("--dp", help="Publish differentially private models only.")
    ] = _OPTIONS.dp,
    epsilon: Annotated[
        float, typer.Option("--epsilon", help="Privacy budget of the whole run, with --dp.")
    ] = _OPTIONS.epsilon,
    delta: Annotated[float, typer.Option("--delta", help="Of that budget.")] = _OPTIONS.delta,
    clipping_norm: Annotated[
        float, typer.Option("--clipping-norm", help="Longest update, with --dp.")
    ] = _OPTIONS.clipping_norm,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Train one model with simulated devices through two coordinators and a store of their own.

    Everything runs on this machine and nothing is left behind, unless --keep-dir asks for it.

    Where it fails, the logs stay, and it tells where.
    """
    with Output(output_format) as output, ExitStack() as stack:
        if attackers is None:
            is_attacked = attack != DEFAULTS.attack
            attackers = max(1, int(_ATTACKERS_SHARE * devices)) if is_attacked else 0
        settings = DemoOptions(
            population=PopulationOptions(
                given=given(context),
                dataset=dataset,
                devices=devices,
                alpha=alpha,
                seed=seed,
                attack=attack,
                attackers=attackers,
                attack_scale=attack_scale,
                data_dir=data_dir,
            ),
            rounds=rounds,
            aggregator=aggregator,
            keep_dir=keep_dir,
            kill_at_round=kill_coordinator_at_round,
            mode=mode,
            holders=holders,
            threshold=threshold,
            group_size=group_size,
            compression=compression,
            compression_ratio=compression_ratio,
            value_type=value_type,
            dp=dp,
            epsilon=epsilon,
            delta=delta,
            clipping_norm=clipping_norm,
        ).settings()
        stack.enter_context(terminate_as_interrupt())
        guardian = stack.enter_context(Guardian())
        folder = _folder(keep_dir, guardian)
        view = stack.enter_context(DemoView(_console_of(output), rounds))
        _isolate(os.environ)
        place = DemoPlace(folder=folder, guardian=guardian, is_kept=keep_dir is not None)
        report = asyncio.run(Demo(settings, place, view, data_dir=data_dir).run())
        stack.close()
        _tell(report, output)
        if not report.is_good:
            raise typer.Exit(ExitCode.FAILURE)


def _isolate(environment: MutableMapping[str, str]) -> None:
    """Keep the environment of a real installation away from the demonstration's processes."""
    for name in [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]:
        del environment[name]
    # What one process compiles the next one finds: source may have changed since the set-up.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # gRPC would reach the coordinators through a proxy that the environment names.
    environment["no_grpc_proxy"] = "127.0.0.1"


def _folder(keep_dir: Path | None, guardian: Guardian) -> Path:
    if keep_dir is None:
        return guardian.folder("fedagg-demo-")
    keep_dir.mkdir(parents=True, exist_ok=True)
    return keep_dir.absolute()


def _console_of(output: Output) -> Console | None:
    """Choose where progress goes: beside a JSON answer only a person may see it."""
    if not output.is_json:
        return output.console
    return output.stderr if output.stderr.is_terminal else None


def _tell(report: DemoReport, output: Output) -> None:
    if output.is_json:
        output.json(report.as_json())
        return
    output.console.print(report.table())
    output.line(report.summary())
    if report.problem:
        output.error(report.problem, ExitCode.FAILURE)
