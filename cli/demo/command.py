"""`fedagg demo`: from nothing to a trained model on this machine."""

import asyncio
import os
import tempfile
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from cli.demo.report import DemoReport
from cli.demo.run import Demo
from cli.demo.settings import NUM_COORDINATORS, PLAIN, SHARED, DemoSettings, SharedSettings
from cli.demo.terms import CompressionTerms, PrivacyTerms
from cli.demo.view import DemoView
from cli.exit_codes import CliError, ExitCode
from cli.output import FormatOption, Output, OutputFormat
from cli.signals import terminate_as_interrupt
from server.config import ENVIRONMENT_PREFIX
from simulation.scenarios import Scenario
from updates.plan import Method

_DEFAULTS: Final = Scenario()
_SHARED: Final = SharedSettings()
_COMPRESSION: Final = CompressionTerms()
_PRIVACY: Final = PrivacyTerms()
_ATTACKERS_SHARE: Final = 0.2


def demo(
    devices: Annotated[
        int, typer.Option("--devices", min=1, max=1000, help="Devices, each a real gRPC client.")
    ] = _DEFAULTS.num_devices,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds to train.")] = (
        _DEFAULTS.num_rounds
    ),
    aggregator: Annotated[
        str, typer.Option("--aggregator", help="A rule, after any steps: docs/Aggregation.md.")
    ] = "mean",
    attack: Annotated[
        str,
        typer.Option("--attack", help="none, sign-flip, gaussian, zero, same-value or label-flip."),
    ] = _DEFAULTS.attack,
    attackers: Annotated[
        int | None,
        typer.Option(
            "--attackers", min=0, help="Malicious devices; default: none, or a fifth under attack."
        ),
    ] = None,
    attack_scale: Annotated[
        float, typer.Option("--attack-scale", help="Strength of the attack, > 0.")
    ] = _DEFAULTS.attack_scale,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Dirichlet concentration of the data; inf: even.")
    ] = _DEFAULTS.alpha,
    dataset: Annotated[
        str, typer.Option("--dataset", help="digits, mnist or fashion-mnist.")
    ] = _DEFAULTS.dataset,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root of every draw.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where mnist or fashion-mnist lies.")
    ] = None,
    keep_dir: Annotated[
        Path | None,
        typer.Option("--keep-dir", help="Keep models, audit log and logs in this new folder."),
    ] = None,
    kill_coordinator_at_round: Annotated[
        int | None,
        typer.Option(
            "--kill-coordinator-at-round", min=1, help="Kill the leading coordinator there."
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="plain, or shared: nobody sees an update.")
    ] = PLAIN,
    holders: Annotated[
        int, typer.Option("--holders", min=2, max=7, help="Share holders of the shared mode.")
    ] = _SHARED.holders,
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=7, help="Shares that open a sum.")
    ] = _SHARED.threshold,
    group_size: Annotated[
        int,
        typer.Option(
            "--group-size", min=0, help="Updates in each opened sum; 0: one sum of all selected."
        ),
    ] = _SHARED.group_size,
    compression: Annotated[
        str,
        typer.Option("--compression", help="dense, top-k, rand-k, announced or projection."),
    ] = _COMPRESSION.method,
    compression_ratio: Annotated[
        float, typer.Option("--compression-ratio", help="Numbers sent, as a share of all.")
    ] = _COMPRESSION.ratio,
    value_type: Annotated[
        str | None,
        typer.Option("--value-type", help="float32, float16, bfloat16, int8 or int4."),
    ] = _COMPRESSION.value_type,
    dp: Annotated[
        bool, typer.Option("--dp", help="Publish differentially private models only.")
    ] = False,
    epsilon: Annotated[
        float, typer.Option("--epsilon", help="Privacy budget of the whole run, with --dp.")
    ] = _PRIVACY.epsilon,
    delta: Annotated[float, typer.Option("--delta", help="Of that budget.")] = _PRIVACY.delta,
    clipping_norm: Annotated[
        float, typer.Option("--clipping-norm", help="Longest update, with --dp.")
    ] = _PRIVACY.clipping_norm,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Train one model with simulated devices through two coordinators and a store of their own.

    Everything runs on this machine and nothing is left behind, unless --keep-dir asks for it.
    """
    with Output(output_format) as output, ExitStack() as stack:
        if attackers is None:
            attackers = 0 if attack == "none" else max(1, int(_ATTACKERS_SHARE * devices))
        settings = DemoSettings(
            scenario=Scenario(
                dataset=dataset,
                num_devices=devices,
                alpha=alpha,
                seed=seed,
                num_attackers=attackers,
                attack=attack,
                attack_scale=attack_scale,
                num_rounds=rounds,
            ),
            aggregator=aggregator,
            kill_coordinator_at_round=kill_coordinator_at_round,
            shared=_shared(mode, holders=holders, threshold=threshold, group_size=group_size),
            compression=CompressionTerms(
                method=compression, ratio=compression_ratio, value_type=value_type
            ),
            privacy=(
                PrivacyTerms(epsilon=epsilon, delta=delta, clipping_norm=clipping_norm)
                if dp
                else None
            ),
        )
        stack.enter_context(terminate_as_interrupt())
        folder = _folder(keep_dir, stack)
        view = stack.enter_context(DemoView(_console_of(output), rounds))
        view.say(_opening(settings))
        _isolate(os.environ)
        report = asyncio.run(Demo(settings, folder, view, data_dir=data_dir).run())
        stack.close()
        _tell(report, output)
        if not report.is_good:
            raise typer.Exit(ExitCode.FAILURE)


def _shared(mode: str, *, holders: int, threshold: int, group_size: int) -> SharedSettings | None:
    if mode == PLAIN:
        return None
    if mode != SHARED:
        msg = f"--mode {mode} must be {PLAIN} or {SHARED}"
        raise CliError(msg, exit_code=ExitCode.USAGE)
    return SharedSettings(holders=holders, threshold=threshold, group_size=group_size)


def _isolate(environment: MutableMapping[str, str]) -> None:
    """Keep the environment of a real installation away from the demonstration's processes."""
    for name in [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]:
        del environment[name]
    # gRPC would reach the coordinators through a proxy that the environment names.
    environment["no_grpc_proxy"] = "127.0.0.1"


def _folder(keep_dir: Path | None, stack: ExitStack) -> Path:
    if keep_dir is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-demo-")))
    keep_dir.mkdir(parents=True, exist_ok=True)
    if any(keep_dir.iterdir()):
        msg = f"--keep-dir={keep_dir} must be empty"
        raise CliError(msg, exit_code=ExitCode.USAGE)
    return keep_dir.absolute()


def _console_of(output: Output) -> Console | None:
    """Progress is part of the text answer; beside a JSON answer only a person may see it."""
    if not output.is_json:
        return output.console
    return output.stderr if output.stderr.is_terminal else None


def _opening(settings: DemoSettings) -> str:
    scenario = settings.scenario
    attack = (
        f"{scenario.num_attackers} of them attack ({scenario.attack} x{scenario.attack_scale:g}), "
        if scenario.attack != "none" and scenario.num_attackers
        else ""
    )
    shared = settings.shared
    committee = f", {shared.holders} share holders, {shared.threshold} open a sum" if shared else ""
    return (
        f"{scenario.num_devices} devices, {attack}{scenario.dataset}, alpha {scenario.alpha:g}, "
        f"{settings.aggregator}; {NUM_COORDINATORS} coordinators, 1 store{committee}"
        f"{_terms(settings)}"
    )


def _terms(settings: DemoSettings) -> str:
    compression, privacy = settings.compression, settings.privacy
    parts = []
    if not compression.is_dense:
        kept = "" if compression.method == Method.DENSE.value else f" {compression.ratio:.2%}"
        kind = f" as {compression.value_type}" if compression.value_type else ""
        parts.append(f"{compression.method}{kept}{kind}")
    if privacy is not None:
        parts.append(f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}")
    return "; " + ", ".join(parts) if parts else ""


def _tell(report: DemoReport, output: Output) -> None:
    if output.is_json:
        output.json(report.as_json())
        return
    output.console.print(report.table())
    output.line(report.summary())
    if report.problem:
        output.error(report.problem, ExitCode.FAILURE)
