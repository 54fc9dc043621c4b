"""`fedagg admin privacy`: what a task has spent of its budget, and what a budget would cost."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from cli.admin.client import DEFAULT_URL, AdminClient, TaskOption, TokenOption, UrlOption
from cli.output import FormatOption, Output, OutputFormat
from privacy.budget import Accountant
from privacy.charge import Sampling
from privacy.errors import PrivacyError
from server.admin.answers import PrivacyStatus

privacy_app = typer.Typer(help="The privacy budget.", no_args_is_help=True)


@privacy_app.command("show")
def show_privacy(
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Show what a task has spent of its privacy budget, and what is left."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        status = client.privacy(client.only_task(task))
        if output.is_json:
            output.json(status.model_dump())
        else:
            output.facts(_facts(status))


@privacy_app.command("plan")
def plan_privacy(
    population: Annotated[int, typer.Option("--population", min=1, help="Devices of the task.")],
    cohort: Annotated[int, typer.Option("--cohort", min=1, help="Updates expected in a round.")],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of the whole run.")],
    epsilon: Annotated[float, typer.Option("--epsilon", help="The budget.")] = 1.0,
    delta: Annotated[float, typer.Option("--delta", help="Of the budget.")] = 1e-5,
    sampling: Annotated[
        Sampling, typer.Option("--sampling", help="What amplification is claimed.")
    ] = Sampling.POISSON,
    max_participations: Annotated[
        int | None,
        typer.Option("--max-participations", min=1, help="Rounds of one device; without sampling."),
    ] = None,
    bands: Annotated[
        int | None,
        typer.Option("--bands", min=1, help="Of mechanism banded; default: independent noise."),
    ] = None,
    accountant: Annotated[
        str, typer.Option("--accountant", help="What calibrates the noise: pld or rdp.")
    ] = "pld",
    sensitivity: Annotated[
        float, typer.Option("--sensitivity", help="Of the sum, in clipping norms.")
    ] = 1.0,
    clipping_norm: Annotated[
        float, typer.Option("--clipping-norm", help="Longest update; errors are in its unit.")
    ] = 1.0,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Numbers in an update.")] = 1,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Tell the noise that a budget asks for, and the error it leaves. Asks no server."""
    with Output(output_format) as output:
        plan = _planned(
            epsilon=epsilon,
            delta=delta,
            population=population,
            cohort=cohort,
            rounds=rounds,
            sampling=sampling,
            max_participations=max_participations,
            bands=bands,
            accountant=_accountant(accountant),
            sensitivity=sensitivity,
            clipping_norm=clipping_norm,
            dim=dim,
        )
        if output.is_json:
            output.json(plan)
        else:
            output.facts({name: _readable(value) for name, value in plan.items()})


def _planned(**request: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of PlanRequest
    # The accountant's packages take two seconds to load, which no other command should pay.
    from privacy.noise_plan import PlanRequest, plan  # noqa: PLC0415

    found = plan(PlanRequest(**request))
    facts = {name: value for name, value in asdict(found).items() if name != "charge"}
    return {"noise_multiplier": found.charge.noise_multiplier, **facts}


def _readable(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _accountant(name: str) -> Accountant:
    match name:
        case "pld" | "rdp":
            return name
        case _:
            msg = f"--accountant={name} must be pld or rdp"
            raise PrivacyError(msg)


def _facts(status: PrivacyStatus) -> dict[str, object]:
    facts = status.model_dump(exclude={"charge", "epsilon_by_accountant", "participations"})
    by_accountant = {
        f"epsilon_spent_{name}": value for name, value in status.epsilon_by_accountant.items()
    }
    seen = ", ".join(
        f"{devices} in {rounds}" for rounds, devices in sorted(status.participations.items())
    )
    return {**facts, **by_accountant, "devices_in_rounds": seen or None}
