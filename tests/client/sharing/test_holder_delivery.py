"""Deliveries to scripted share holders: what is retried, what is believed, what is enough."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations  # the grpc types are generic in the stubs only

import dataclasses
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import pytest

from client.config import ClientConfig
from client.errors import (
    ClientConfigError,
    ErrorReason,
    FedaggError,
    InvalidUpdateError,
    PreconditionError,
    ProtocolError,
    RoundDeadlineError,
    TrainingError,
    TransportError,
)
from client.outcome import Outcome
from client.round_encoding import DeliveryContext
from client.runtime import Runtime
from client.sharing.update_sealer import UpdateSealer, deliver_update, seal_update
from client.transport.federation_transport import Traffic
from client.transport.messages import Assignment
from client.transport.server_messages import check_in_answer
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from protos.fedagg.v1.share_holder_pb2_grpc import (
    ShareHolderServicer,
    add_ShareHolderServicer_to_server,
)
from security.shared_round.keys.signing import sign_statement
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.committee import dump_committee
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.client.bench import Bench
from tests.client.committee import CLIP_NORM, Holders, make_holders
from tests.client.federation import (
    DEVICE,
    LoseResponse,
    Refuse,
    ScriptedFederation,
    Status,
    make_config,
)

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"

VECTOR = np.linspace(-0.4, 0.5, 7, dtype=np.float32)
LARGE = np.full(140_001, 1e-3, dtype=np.float32)
NOT_YET = Refuse(errors_pb2.UNKNOWN_ROUND, grpc.StatusCode.NOT_FOUND)
REFUSED = Refuse(errors_pb2.SEAL_BROKEN, grpc.StatusCode.INVALID_ARGUMENT)
DOWN = Status(grpc.StatusCode.UNAVAILABLE)


@dataclass
class ScriptedHolder(ShareHolderServicer):
    """Stores what it is sent; `faults` are used up share by share."""

    holders: Holders
    index: int
    faults: deque[Refuse | Status | LoseResponse] = field(default_factory=deque)
    always: Refuse | Status | None = None
    lie: Callable[[round_pb.HolderStatement], None] | None = None
    stored: dict[bytes, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def StoreShares(
        self, request: pb.StoreSharesRequest, context: _Context
    ) -> pb.StoreSharesResponse:
        self.calls.append("StoreShares")
        (share,) = request.shares
        found = hashlib.sha256(share.start.header.header).digest()
        fault = self._fault()
        if isinstance(fault, Status):
            await context.abort(fault.code, "scripted")
        if isinstance(fault, Refuse) or (
            found not in self.stored and len(share.body) != share.start.body_bytes
        ):
            reason = fault.reason if isinstance(fault, Refuse) else errors_pb2.TRUNCATED_STREAM
            error = errors_pb2.ErrorDetail(reason=reason)
            return pb.StoreSharesResponse(outcomes=[pb.ShareOutcome(error=error)])
        self.stored.setdefault(found, share.body)
        if isinstance(fault, LoseResponse):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        return pb.StoreSharesResponse(
            outcomes=[pb.ShareOutcome(receipt=self._receipt(share.start))]
        )

    async def StoreShare(
        self, request_iterator: AsyncIterator[pb.StoreShareRequest], context: _Context
    ) -> round_pb.SignedStatement:
        self.calls.append("StoreShare")
        start = (await anext(aiter(request_iterator))).start
        fault = self._fault()
        if isinstance(fault, Status):
            await context.abort(fault.code, "scripted")
        body = b"".join([part.data async for part in request_iterator])
        assert len(body) == start.body_bytes
        self.stored[hashlib.sha256(start.header.header).digest()] = body
        if isinstance(fault, LoseResponse):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        return self._receipt(start)

    def _fault(self) -> Refuse | Status | LoseResponse | None:
        return self.always or (self.faults.popleft() if self.faults else None)

    def _receipt(self, start: pb.ShareStart) -> round_pb.SignedStatement:
        header = start.header.header
        statement = Speaker(params_sha256=start.params_sha256, holder=self.index).receipt(
            device_id=round_pb.SharedHeader.FromString(header).device_id,
            header_sha256=hashlib.sha256(header).digest(),
        )
        if self.lie:
            self.lie(statement)
        return sign_statement(self.holders.secrets[self.index - 1], statement)


@dataclass
class Stage:
    """A committee of scripted holders, and a device's round."""

    holders: Holders
    scripts: tuple[ScriptedHolder, ...]
    params: RoundParameters
    assignment: Assignment
    config: ClientConfig

    async def deliver(self, runtime: Runtime, **limits: float) -> list[int]:
        """Seal and deliver; the holders that gave receipts."""
        vector = LARGE if self.params.dim == len(LARGE) else VECTOR
        payload = seal_update(vector, self.assignment, self.config)
        receipts = await deliver_update(
            payload, self.assignment, self.config, runtime=runtime, **limits
        )
        return sorted(receipts)


@asynccontextmanager
async def staged(
    folder: Path, *, num_holders: int = 4, dim: int = 7, script: ScriptedFederation | None = None
) -> AsyncIterator[Stage]:
    holders = make_holders(folder, num_holders=num_holders)
    scripts = tuple(
        ScriptedHolder(holders, j)  # type: ignore[abstract]  # the calls of a delivery
        for j in range(1, num_holders + 1)
    )
    async with AsyncExitStack() as stack:
        found = []
        for script_, identity in zip(scripts, holders.committee.holders, strict=True):
            server = grpc.aio.server()
            add_ShareHolderServicer_to_server(script_, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            found.append(dataclasses.replace(identity, address=f"127.0.0.1:{port}"))
        holders.committee = dataclasses.replace(holders.committee, holders=tuple(found))
        holders.committee_file.write_bytes(dump_committee(holders.committee))
        script = script or ScriptedFederation(dim=dim)
        params = holders.share(script, format=ShareFormat.SHAMIR_SEEDED)
        answer = check_in_answer(script.assignment())
        assert isinstance(answer, Assignment)
        yield Stage(
            holders=holders,
            scripts=scripts,
            params=params,
            assignment=dataclasses.replace(answer, direct_delivery=True),
            config=dataclasses.replace(make_config("127.0.0.1:1"), sharing=holders.sharing()),
        )


@pytest.mark.parametrize("dim", [7, len(LARGE)])
async def test_every_holder_gets_its_own_piece(tmp_path: Path, runtime: Runtime, dim: int) -> None:
    async with staged(tmp_path, dim=dim) as stage:
        assert await stage.deliver(runtime) == [1, 2, 3, 4]
        sizes = [len(body) for script in stage.scripts for body in script.stored.values()]
        body = stage.params.body_bytes(0)
        assert sizes == [0, body, body, body]
        names = {name for script in stage.scripts for name in script.stored}
        assert len(names) == 1


async def test_the_server_gets_the_prefix_only(bench: Bench, tmp_path: Path) -> None:
    async with staged(tmp_path, script=bench.script) as stage:
        message = bench.script.assignment()
        message.assignment.direct_delivery = True
        bench.script.answers.append(message)
        config = dataclasses.replace(make_config(bench.address), sharing=stage.config.sharing)
        outcome = await bench.client(config=config).participate_once()
        assert outcome.outcome is Outcome.ACCEPTED, outcome
        assert sorted(outcome.share_receipts) == [1, 2, 3, 4]
        (payload,) = bench.script.stored.values()
        (body,) = stage.scripts[1].stored.values()
        assert body not in bytes(payload)
        assert outcome.bytes_up > len(payload) + 3 * len(body)


@pytest.mark.parametrize("fault", [NOT_YET, DOWN, LoseResponse()])
@pytest.mark.parametrize("dim", [7, len(LARGE)])
async def test_what_may_pass_is_tried_again(
    tmp_path: Path, runtime: Runtime, fault: Refuse | Status | LoseResponse, dim: int
) -> None:
    async with staged(tmp_path, dim=dim) as stage:
        script = stage.scripts[1]
        script.faults.append(DOWN if dim > 7 and fault is NOT_YET else fault)
        assert await stage.deliver(runtime) == [1, 2, 3, 4]
        assert len(script.stored) == 1
        # A stored share is not streamed twice: the receipt is asked for first.
        lost_large = dim > 7 and isinstance(fault, LoseResponse)
        assert script.calls.count("StoreShare") == (0 if dim == 7 else 1 if lost_large else 2)


@pytest.mark.parametrize("trouble", [DOWN, REFUSED, NOT_YET])
async def test_a_quorum_is_enough(
    tmp_path: Path, runtime: Runtime, trouble: Refuse | Status
) -> None:
    async with staged(tmp_path) as stage:
        assert stage.params.quorum == 3
        stage.scripts[2].always = trouble
        started = runtime.clock()
        assert await stage.deliver(runtime) == [1, 2, 4]
        assert stage.config.sharing is not None
        assert runtime.clock() - started <= stage.config.sharing.holder_patience_s


@pytest.mark.parametrize(
    ("trouble", "error"), [(DOWN, TransportError), (REFUSED, InvalidUpdateError)]
)
async def test_less_than_a_quorum_is_not(
    tmp_path: Path, runtime: Runtime, trouble: Refuse | Status, error: type[FedaggError]
) -> None:
    async with staged(tmp_path) as stage:
        stage.scripts[0].always = stage.scripts[2].always = trouble
        with pytest.raises(error):
            await stage.deliver(runtime)


async def test_holders_that_are_needed_are_waited_for_beyond_patience(
    tmp_path: Path, runtime: Runtime
) -> None:
    async with staged(tmp_path) as stage:
        for script in stage.scripts[:2]:
            script.faults.extend([DOWN] * 9)
        started = runtime.clock()
        assert len(await stage.deliver(runtime)) >= 3
        assert runtime.clock() - started > 0


async def test_the_delivery_leaves_time_for_the_submission(
    tmp_path: Path, runtime: Runtime
) -> None:
    async with staged(tmp_path) as stage:
        stage.scripts[3].always = DOWN
        deadline_at = runtime.clock() + 8.0
        assert await stage.deliver(runtime, deadline_at=deadline_at) == [1, 2, 3]
        assert runtime.clock() <= deadline_at - 2.0
        with pytest.raises(RoundDeadlineError):
            await stage.deliver(runtime, deadline_at=runtime.clock())


def _names_another_device(statement: round_pb.HolderStatement) -> None:
    statement.receipt.device_id = "another"


def _names_another_update(statement: round_pb.HolderStatement) -> None:
    statement.receipt.header_sha256 = bytes(32)


def _names_another_holder(statement: round_pb.HolderStatement) -> None:
    statement.holder = 1


def _names_another_round(statement: round_pb.HolderStatement) -> None:
    statement.params_sha256 = bytes(32)


@pytest.mark.parametrize(
    "lie",
    [
        _names_another_device,
        _names_another_update,
        _names_another_holder,
        _names_another_round,
    ],
)
async def test_a_false_receipt_counts_for_nothing(
    tmp_path: Path, runtime: Runtime, lie: Callable[[round_pb.HolderStatement], None]
) -> None:
    async with staged(tmp_path) as stage:
        stage.scripts[3].lie = lie
        assert await stage.deliver(runtime) == [1, 2, 3]
        stage.scripts[1].lie = lie
        with pytest.raises(ProtocolError, match=r"receipt of holder \d"):
            await stage.deliver(runtime)


async def test_a_vector_that_changes_meanwhile_is_not_sent(
    tmp_path: Path, runtime: Runtime
) -> None:
    async with staged(tmp_path, dim=len(LARGE)) as stage:
        vector = LARGE.copy()
        payload = seal_update(vector, stage.assignment, stage.config)
        vector[0] = -CLIP_NORM / 2
        with pytest.raises(TrainingError, match="cannot be sent"):
            await deliver_update(payload, stage.assignment, stage.config, runtime=runtime)


async def test_a_second_sealing_for_a_round_gives_the_first_once_it_began(
    tmp_path: Path, runtime: Runtime
) -> None:
    async with staged(tmp_path) as stage:
        encoding = UpdateSealer(stage.config).encoding(stage.assignment)
        version = stage.assignment.model_version
        first = encoding.encode(VECTOR, model_version=version)
        unsent = encoding.encode(VECTOR, model_version=version)
        assert unsent[:] != first[:]

        context = DeliveryContext(
            runtime=runtime, deadline_at=runtime.clock() + 60, traffic=Traffic()
        )
        await encoding.deliver(unsent, context)
        assert encoding.encode(-VECTOR, model_version=version)[:] == unsent[:]


def test_a_committee_without_addresses_is_refused(tmp_path: Path) -> None:
    holders = make_holders(tmp_path)
    script = ScriptedFederation()
    holders.share(script)
    answer = check_in_answer(script.assignment())
    assert isinstance(answer, Assignment)
    config = dataclasses.replace(make_config("127.0.0.1:1"), sharing=holders.sharing())
    with pytest.raises(PreconditionError, match="no address of holder 1") as caught:
        seal_update(VECTOR, dataclasses.replace(answer, direct_delivery=True), config)
    assert caught.value.reason is ErrorReason.WEAKER_THAN_POLICY


def test_wrong_settings_for_holders_are_refused(tmp_path: Path) -> None:
    holders = make_holders(tmp_path)
    sharing = dataclasses.replace(holders.sharing(), holders_ca=tmp_path / "gone.pem")
    config = dataclasses.replace(make_config("127.0.0.1:1"), sharing=sharing)
    with pytest.raises(ClientConfigError, match=r"cannot read .*gone\.pem"):
        UpdateSealer(config)
    assert config.device_id == DEVICE
