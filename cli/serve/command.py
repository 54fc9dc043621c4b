"""`fedagg serve`: the service on this host, kept running."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.output import FormatOption, Output, OutputFormat
from cli.serve.service import COORDINATOR_PROGRAM, Service, server_template
from monitoring.logs import EventLogger, LogFormat, LogValue, configure_logging, get_logger
from server.config import load_config
from server.config.host import claim_host
from server.processes.child_process import ProcessSpec
from server.processes.supervisor import ProcessEvent, ProcessEventKind, Supervisor

_log: Final = get_logger("fedagg.serve")

app: Final = typer.Typer(add_completion=False)


@app.command("serve")
def serve(
    config: Annotated[
        Path, typer.Option("--config", help="Configuration file; see docs/samples/server.toml.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, max=64, help="Coordinator processes; default: as configured."
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Run the coordinators, and the embedded store if one is configured, until SIGTERM.

    A process that dies is started again. Logs go to standard error, as JSON lines with
    --format json or where it is no terminal.
    """
    with Output(output_format) as output:
        settings = load_config(config)
        log_format: LogFormat = "json" if output.is_json else "auto"
        configure_logging(
            level=settings.observability.log_level, log_format=log_format, stream=sys.stderr
        )
        claim_host(settings, shared=False)
        listen = settings.listen
        with (
            server_template({COORDINATOR_PROGRAM: ("--config", str(config))}) as template,
            Service(
                config,
                settings,
                workers=workers or listen.workers,
                template=template,
                log_format=log_format,
            ) as service,
        ):
            asyncio.run(
                supervise(
                    (*template.specs, *service.specs),
                    _log,
                    on_event=service.observe,
                    grpc=listen.grpc,
                    http=listen.http,
                    metrics=listen.metrics,
                )
            )


async def supervise(
    specs: Sequence[ProcessSpec],
    log: EventLogger,
    *,
    on_event: Callable[[ProcessEvent], None] = lambda _: None,
    **serving: LogValue,
) -> None:
    """Run processes until SIGTERM or SIGINT, and log what happens to them.

    Args:
        specs: the processes.
        log: takes it.
        on_event: told of it too.
        serving: what to log when all of them are ready.

    Raises:
        StartupError: if a process ends before it was ever ready.
    """

    def tell(event: ProcessEvent) -> None:
        on_event(event)
        _log_event(log, event)

    def ready() -> None:
        log.info("serving", **serving)

    await Supervisor(specs, on_event=tell, on_ready=ready).run()
    log.info("stopped")


def _log_event(log: EventLogger, event: ProcessEvent) -> None:
    match event.kind:
        case ProcessEventKind.STARTED | ProcessEventKind.READY:
            log.info(f"process_{event.kind.value}", name=event.name, pid=event.pid)
        case ProcessEventKind.EXITED:
            log.info("process_exited", name=event.name, pid=event.pid, status=event.exit_code)
        case ProcessEventKind.RESTARTING:
            log.warning("process_restarting", name=event.name, delay_s=event.delay_s)
