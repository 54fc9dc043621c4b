"""`fedagg models`: start models for a task, and trained ones out of a server."""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import IO, Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray

from cli.admin.client import DEFAULT_URL, AdminClient, TaskOption, TokenOption, UrlOption
from cli.exit_codes import CliError, ExitCode
from cli.models.files import refuse_existing, written_whole
from cli.models.tensors import (
    Convert,
    TensorFile,
    check_order,
    is_safetensors,
    model_tensors,
    read_order,
    read_safetensors,
)
from cli.output import FormatOption, Output, OutputFormat
from server.admin.answers import ModelInfo
from simulation.models import LAYER_SIZES, initial_weights
from updates.vectors import decode_model, encode_model

app = typer.Typer(help="Model files: make one, bring one in, bring one out.", no_args_is_help=True)

_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth"})

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the file where there is one.")]


@app.command("init")
def init(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(LAYER_SIZES)}.")],
    output_path: OutputOption,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="What its weights are drawn from.")
    ] = 0,
    force: ForceOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Draw a fresh model for one of the simulated tasks; the same for the same seed."""
    with Output(output_format) as output:
        if name not in LAYER_SIZES:
            msg = f"no model {name!r}; there are {', '.join(LAYER_SIZES)}"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        refuse_existing(output_path, force=force)
        _write_model(initial_weights(name, seed), output_path, output)


@app.command("import")
def import_model(
    file: Annotated[
        Path, typer.Argument(help="A torch file of a state_dict, or a safetensors file.")
    ],
    output_path: OutputOption,
    order: Annotated[
        str | None,
        typer.Option(
            "--order",
            help="Tensor names of a safetensors file in model order: separated by commas, or a "
            "file of them. Not needed where the file records it.",
        ),
    ] = None,
    convert: Annotated[
        Convert | None,
        typer.Option(
            "--convert", help="Make other numbers float32: where nothing is lost, or rounded."
        ),
    ] = None,
    floats_only: Annotated[
        bool,
        typer.Option("--floats-only", help="Leave out what is not floating-point, as counters."),
    ] = False,
    force: ForceOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Make a task's start model from other people's file.

    Tensors keep their names. A device trains them in this order: that of a state_dict, or --order.
    """
    with Output(output_format) as output:
        refuse_existing(output_path, force=force)
        source = _read(file, order)
        tensors = model_tensors(
            source, _order_of(source, order), convert=convert, floats_only=floats_only
        )
        _write_model(tensors, output_path, output)


@app.command("export")
def export(
    output_path: OutputOption,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Model version; default: the current.")
    ] = None,
    task: TaskOption = None,
    as_torch: Annotated[
        bool,
        typer.Option(
            "--torch", help="Write a state_dict with torch, as for an output *.pt or *.pth."
        ),
    ] = False,
    force: ForceOption = False,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Bring a model version out of a running server, and check its SHA-256 on the way."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        refuse_existing(output_path, force=force)
        as_torch = as_torch or output_path.suffix in _TORCH_SUFFIXES
        torch_files = _torch_files("a state_dict") if as_torch else None
        name = client.only_task(task)
        number = client.task(name).model_version if version is None else version
        info = client.model(name, number)
        with written_whole(output_path) as file:
            _download(client, name, info, file)
            if torch_files is not None:
                file.seek(0)
                tensors, _ = decode_model(file.read())
                file.seek(0)
                file.truncate()
                torch_files.write_state_dict(tensors, file)
        if output.is_json:
            output.json({"file": str(output_path), **info.model_dump()})
        else:
            output.line(f"version {number} of {name} is in {output_path}: SHA-256 {info.sha256}")


def _download(client: AdminClient, task: str, info: ModelInfo, file: IO[bytes]) -> None:
    digest = hashlib.sha256()
    for part in client.model_file(task, info.version):
        digest.update(part)
        file.write(part)
    if digest.hexdigest() != info.sha256:
        msg = f"version {info.version} arrived with SHA-256 {digest.hexdigest()}, expected"
        msg += f" {info.sha256}: nothing was written"
        raise CliError(msg)


def _read(path: Path, order: str | None) -> TensorFile:
    data = path.read_bytes()
    if is_safetensors(data):
        return read_safetensors(data)
    if order is not None:
        msg = "--order is for safetensors files: a state_dict has an order"
        raise CliError(msg, exit_code=ExitCode.USAGE)
    found: TensorFile = _torch_files(f"{path}, no safetensors file,").read_state_dict(data)
    return found


def _order_of(source: TensorFile, given: str | None) -> tuple[str, ...]:
    if given is None:
        if source.order is None:
            msg = "safetensors files keep no order: give --order, the names in model order"
            raise CliError(msg, exit_code=ExitCode.USAGE)
        return source.order
    order = check_order(read_order(given), source.tensors, source="--order")
    if source.order is not None and order != source.order:
        msg = f"--order differs from the order that the file records: {', '.join(source.order)}"
        raise CliError(msg, exit_code=ExitCode.USAGE)
    return order


def _torch_files(what: str) -> ModuleType:
    try:
        # Most people have no torch, and those who have need not wait for it.
        from cli.models import torch_files  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        msg = f"{what} needs torch: pip install 'fedagg[torch]'"
        raise CliError(msg, exit_code=ExitCode.USAGE) from error
    return torch_files


def _write_model(
    tensors: dict[str, NDArray[np.float32]], output_path: Path, output: Output
) -> None:
    data = encode_model(tensors)
    with written_whole(output_path) as file:
        file.write(data)
    facts = {
        "file": str(output_path),
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if output.is_json:
        output.json(facts)
    else:
        output.line(
            f"{facts['parameters']:,} numbers in {facts['tensors']} tensors are in {output_path}:"
            f" SHA-256 {facts['sha256']}"
        )
