"""Asks for SecAgg+ in a process of its own: Flower wants another cryptography than ours."""

import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.processes import PEERS_PYTHON, ROOT

_MODULE: Final = "benchmarks.secure.secagg_plus"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggSettings:
    """How rounds are run.

    Attributes:
        num_shares: neighbours of a client, itself included; Flower wants an odd number.
        threshold: shares that recover a key.
        clipping_range: largest magnitude of an entry; 2^22 steps cover both signs of it.
        rounds: of which the cheapest counts.
    """

    num_shares: int
    threshold: int
    clipping_range: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggFigures:
    """One round.

    Attributes:
        version: of Flower.
        client_s: processor seconds of one client, on average.
        server_s: of the server.
        bytes_up, bytes_down: of one client, on average.
        max_error: largest difference from the mean in float64.
    """

    version: str
    client_s: float
    server_s: float
    bytes_up: float
    bytes_down: float
    max_error: float


def measure(updates: Sequence[NDArray[np.float32]], settings: SecAggSettings) -> SecAggFigures:
    """Aggregate as often as asked and tell of the cheapest round.

    Args:
        updates: one a client, (d,) float32, all of one length.
        settings: how.

    Raises:
        OSError: if the interpreter with Flower is not there.
        subprocess.CalledProcessError: if SecAgg+ halted.
    """
    sent = io.BytesIO()
    np.save(sent, np.stack(updates))
    words = (settings.num_shares, settings.threshold, settings.clipping_range, settings.rounds)
    command = [str(PEERS_PYTHON), "-m", _MODULE, *map(str, words)]
    done = subprocess.run(  # noqa: S603  # ourselves
        command, cwd=ROOT, input=sent.getvalue(), stdout=subprocess.PIPE, check=True
    )
    return SecAggFigures(**json.loads(done.stdout))
