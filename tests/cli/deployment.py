"""`fedagg serve` as an operator runs it: a process of its own, on loopback ports of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

from cli.demo.ports import ReservedPorts
from simulation.models import initial_weights
from updates.vectors import encode_model

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 90.0  # only a hanging test takes that long
TASK: Final = "digits"
TOKEN: Final = "a-token-of-the-tests"  # noqa: S105

_POLL_S: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A running service."""

    process: subprocess.Popen[bytes]
    grpc: str
    url: str
    metrics_url: str
    log: Path
    data_dir: Path

    def pid_of(self, name: str, *, not_in: tuple[int, ...] = ()) -> int:
        """The process id of a child that is ready; another one than those."""
        give_up_at = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up_at:
            ready = [
                int(entry["pid"])
                for entry in self.events("process_ready")
                if entry["name"] == name and entry["pid"] not in not_in
            ]
            if ready:
                return ready[-1]
            time.sleep(_POLL_S)  # what another process does cannot be waited for otherwise
        raise TimeoutError(self.log.read_text())

    def events(self, event: str) -> list[dict[str, int | str]]:
        """Entries of the log, whole lines only."""
        *lines, _ = self.log.read_text().split("\n")
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == event]

    def wait_until_serving(self) -> None:
        give_up_at = time.monotonic() + DEADLINE_S
        while not self.events("serving"):
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise TimeoutError(self.log.read_text())
            time.sleep(_POLL_S)

    def get(self, url: str) -> httpx.Response:
        return httpx.get(url, trust_env=False, timeout=DEADLINE_S)


@contextmanager
def deployed(folder: Path, *, workers: int, num_rounds: int) -> Iterator[Deployment]:
    """Run the service; nothing of it is left afterwards."""
    model = folder / "m.safetensors"
    model.write_bytes(encode_model(initial_weights("digits", seed=0)))
    with ReservedPorts(3) as ports, (folder / "serve.log").open("wb") as log:
        grpc, http, metrics = ports.addresses
        config = folder / "server.toml"
        config.write_text(_toml(ports.addresses, folder, num_rounds))
        command = [sys.executable, "-m", "cli.main", "serve", "--format", "json"]
        process = subprocess.Popen(
            [*command, "--config", str(config), "--workers", str(workers)],
            cwd=ROOT,
            env={**os.environ, "FEDAGG__ADMIN__TOKEN": TOKEN},
            stderr=log,
        )
        try:
            running = Deployment(
                process=process,
                grpc=grpc,
                url=f"http://{http}",
                metrics_url=f"http://{metrics}/metrics",
                log=folder / "serve.log",
                data_dir=folder / "data",
            )
            running.wait_until_serving()
            yield running
        finally:
            children = (
                psutil.Process(process.pid).children(recursive=True)
                if (process.poll() is None)
                else []
            )
            process.terminate()
            try:
                process.wait(DEADLINE_S)
            finally:
                process.kill()
                process.wait()
            _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
            if alive:
                msg = f"processes were left: {alive}"
                raise RuntimeError(msg)


def _toml(addresses: tuple[str, ...], folder: Path, num_rounds: int) -> str:
    grpc, http, metrics = addresses
    return f"""
        listen = {{grpc = "{grpc}", http = "{http}", metrics = "{metrics}"}}
        tls = {{insecure = true}}
        store = {{data-dir = "{folder}/data"}}
        rounds = {{lease-ttl-s = 1.0}}
        [[task]]
        name = "{TASK}"
        initial-model = "{folder}/m.safetensors"
        num-rounds = {num_rounds}
        reporting-goal = 3
        over-selection = 1.0
        """
