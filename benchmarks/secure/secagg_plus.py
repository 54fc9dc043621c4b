"""Flower's SecAgg+, its own workflow and its own client mod, driven in one process.

Every message is serialized and parsed, as it would be on a network, and its bytes are counted; no
network, no database and no process start is in the time, which is to Flower's advantage.

The interpreter that has Flower runs this, for `secagg.measure`: updates come on standard
input, figures go to standard output.
"""

# ruff: noqa: ANN401  # the adapter of a library whose base classes take anything

import dataclasses
import io
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final

import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp.grid import Grid
from numpy.typing import NDArray

from benchmarks.secure.secagg import SecAggFigures, SecAggSettings

NUM_SAMPLES: Final = 1
RUN_ID: Final = 1

_WARM_UP_CLIENTS: Final = 5
_WARM_UP_DIM: Final = 1_000
_WARM_UP: Final = SecAggSettings(num_shares=5, threshold=3, clipping_range=1.0, rounds=1)


class _Proxy(ClientProxy):  # type: ignore[misc]  # Flower is Any where it is not installed
    """A client's place in Flower's client manager; the workflow reads its id only."""

    def __init__(self, node_id: int) -> None:
        super().__init__(cid=str(node_id))
        self.node_id = node_id

    def get_properties(self, *_: Any) -> Any:
        raise NotImplementedError

    def get_parameters(self, *_: Any) -> Any:
        raise NotImplementedError

    def fit(self, *_: Any) -> Any:
        raise NotImplementedError

    def evaluate(self, *_: Any) -> Any:
        raise NotImplementedError

    def reconnect(self, *_: Any) -> Any:
        raise NotImplementedError


class _Strategy(FedAvg):  # type: ignore[misc]
    """Every client in every round, with the zero model; keeps what comes out."""

    def __init__(self, proxies: Sequence[_Proxy]) -> None:
        super().__init__()
        self._proxies = proxies
        self.result: Parameters | None = None

    def configure_fit(self, *args: Any, **_: Any) -> Any:
        return [(proxy, FitIns(args[1], {})) for proxy in self._proxies]

    def aggregate_fit(self, *args: Any, **_: Any) -> Any:
        self.result = args[1][0][1].parameters
        return self.result, {}


class _InProcessGrid(Grid):  # type: ignore[misc]
    """Answers the workflow's messages by calling the clients' mod, one client after the other."""

    def __init__(self, updates: Sequence[NDArray[np.float32]]) -> None:
        self._updates = updates
        self._contexts = {
            node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in range(1, len(updates) + 1)
        }
        self.bytes_up: Counter[int] = Counter()
        self.bytes_down: Counter[int] = Counter()
        self.client_s = 0.0

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        return [self._exchange(message) for message in messages]

    def _exchange(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        down = message_to_proto(message).SerializeToString()
        self.bytes_down[node] += len(down)
        started = time.thread_time()
        answer = secaggplus_mod(message_from_proto(_parsed(down)), self._contexts[node], self._fit)
        up = message_to_proto(answer).SerializeToString()
        self.client_s += time.thread_time() - started
        self.bytes_up[node] += len(up)
        return message_from_proto(_parsed(up))

    def _fit(self, message: Message, _: Context) -> Message:
        update = self._updates[message.metadata.dst_node_id - 1]
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), NUM_SAMPLES, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    def set_run(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def main(*arguments: str) -> None:
    """Run rounds on the updates that standard input holds and print the cheapest."""
    num_shares, threshold, clipping_range, rounds = arguments
    settings = SecAggSettings(
        num_shares=int(num_shares),
        threshold=int(threshold),
        clipping_range=float(clipping_range),
        rounds=int(rounds),
    )
    logging.getLogger("flwr").setLevel(logging.ERROR)
    updates: NDArray[np.float32] = np.load(io.BytesIO(sys.stdin.buffer.read()))
    # What is loaded once is no round's.
    _run_round(np.zeros((_WARM_UP_CLIENTS, _WARM_UP_DIM), np.float32), _WARM_UP)
    rows = [_run_round(updates, settings) for _ in range(settings.rounds)]
    best = min(rows, key=lambda one: one.server_s + len(updates) * one.client_s)
    sys.stdout.write(json.dumps(dataclasses.asdict(best)))


def _run_round(updates: NDArray[np.float32], settings: SecAggSettings) -> SecAggFigures:
    proxies = [_Proxy(node) for node in range(1, len(updates) + 1)]
    strategy = _Strategy(proxies)
    grid = _InProcessGrid(list(updates))
    context = _context(strategy, dim=len(updates[0]))
    workflow = SecAggPlusWorkflow(
        settings.num_shares,
        settings.threshold,
        max_weight=float(NUM_SAMPLES),
        clipping_range=settings.clipping_range,
    )
    before = time.thread_time()
    workflow(grid, context)
    cpu_s = time.thread_time() - before
    if strategy.result is None:
        msg = "SecAgg+ halted"
        raise RuntimeError(msg)
    mean = np.mean(updates, axis=0, dtype=np.float64)
    count = len(updates)
    return SecAggFigures(
        version=version("flwr"),
        client_s=grid.client_s / count,
        server_s=cpu_s - grid.client_s,
        bytes_up=grid.bytes_up.total() / count,
        bytes_down=grid.bytes_down.total() / count,
        max_error=float(np.abs(parameters_to_ndarrays(strategy.result)[0] - mean).max()),
    )


def _context(strategy: _Strategy, *, dim: int) -> LegacyContext:
    context = LegacyContext(
        Context(RUN_ID, 0, {}, RecordDict(), {}),
        strategy=strategy,
        client_manager=SimpleClientManager(),
    )
    zero = ndarrays_to_parameters([np.zeros(dim, np.float32)])
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        zero, keep_input=True
    )
    return context


def _parsed(data: bytes) -> Any:
    return MessageProto.FromString(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
