"""Error feedback across lost answers, refusals and crashes: nothing counted twice, nothing lost."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from client.compression.error_memory import ErrorMemory
from client.config import RetryPolicy
from client.errors import ClientConfigError
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.mobile_client import MobileClient
from client.outcome import Outcome
from client.runtime import Runtime
from client.state.private_files import PrivateFolder
from client.trainer import Plan, TrainingResult, Weights
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Submission
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from tests.client.bench import Bench
from tests.client.federation import (
    Fault,
    LoseResponse,
    Refuse,
    Status,
    make_config,
)
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.compressor import expand
from updates.plan_message import from_message, to_message
from updates.update_codec import codec_for

DIM = 7
LAYERS = (6, 1)
TOP_2 = CompressionPlan(
    method=Method.TOP_K, dim=DIM, num_values=2, error_feedback=True, residual_decay=1.0
)
CLOSED = Refuse(errors_pb2.ROUND_CLOSED, grpc.StatusCode.FAILED_PRECONDITION)
DEFECT = Refuse(errors_pb2.INTERNAL_ERROR, grpc.StatusCode.INTERNAL)
PROXY = Status(grpc.StatusCode.FAILED_PRECONDITION)
IMPATIENT = RetryPolicy(max_attempts=1)


class Killed(BaseException):
    """Ends the process, as far as the code under test can tell."""


class RandomTrainer:
    """Moves the weights by another random step each time, and keeps the steps."""

    def __init__(self) -> None:
        self.deltas: list[NDArray[np.float32]] = []
        self._rng = np.random.default_rng(5)

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        del plan, should_stop
        trained = {
            name: tensor + self._rng.standard_normal(tensor.shape).astype(np.float32)
            for name, tensor in weights.items()
        }
        steps = [(trained[name] - tensor).ravel() for name, tensor in weights.items()]
        self.deltas.append(np.concatenate(steps))
        return TrainingResult(weights=trained, num_samples=10)


class Life:
    """A device that may end at any time and begin anew, with what it trained and sent."""

    def __init__(self, bench: Bench, folder: Path | None, plan: CompressionPlan = TOP_2) -> None:
        bench.script.compression = to_message(plan)
        self.bench = bench
        self.folder = folder
        self.plan = plan
        self.trainer = RandomTrainer()
        self.delta_of: dict[str, NDArray[np.float32]] = {}
        self.resets: list[str] = []
        self.client = self._made()

    def restart(self) -> None:
        self.client = self._made()

    async def round(self) -> Outcome:
        """Take part in the next round."""
        self.bench.script.round += 1
        return (await self.client.participate_once()).outcome

    async def kept(self) -> NDArray[np.float64]:
        """What the device still owes, once the last update is settled."""
        memory = self.client._device.memory
        await memory.settle(deadline_at=float("inf"))
        residual = memory._store.current(dim=DIM)
        zeros = np.zeros(DIM)
        return zeros if residual is None else residual.vector.astype(np.float64)

    def counted(self) -> NDArray[np.float64]:
        """Everything that the server took, as it reads it."""
        codec = codec_for(self.plan, LAYERS)
        total = np.zeros(DIM)
        for submission in self.bench.script.accepted:
            payload = bytes(self.bench.script.stored[submission])
            total += expand(self.plan, codec.decode(payload))
        return total

    def trained(self) -> NDArray[np.float64]:
        """The updates behind what the server took."""
        accepted = self.bench.script.accepted
        total = np.zeros(DIM)
        for submission in accepted:
            total += self.delta_of[submission]
        return total

    async def check(self) -> None:
        """Every coordinate of every update that counts has arrived or is still kept, once."""
        assert self.bench.script.accepted
        # Float32 rounding of a few numbers of size 1.
        np.testing.assert_allclose(self.counted() + await self.kept(), self.trained(), atol=1e-5)

    def _made(self) -> MobileClient:
        config = make_config(self.bench.address, retry=IMPATIENT)
        client = MobileClient(
            dataclasses.replace(config, state_dir=self.folder),
            self.trainer,
            hooks=ClientHooks(on_event=self._on_event),
            runtime=Runtime(clock=self.bench.time.clock, sleep=self.bench.time.sleep),
        )
        self.bench._clients.append(client)
        return client

    def _on_event(self, event: ClientEvent) -> None:
        if event.kind is EventKind.SUBMITTING and event.submission_id is not None:
            self.delta_of[event.submission_id] = self.trainer.deltas[-1]
        if event.kind is EventKind.RESIDUAL_RESET:
            self.resets.append(event.detail)


@pytest.fixture(params=["disk", "memory"])
def life(request: pytest.FixtureRequest, bench: Bench, tmp_path: Path) -> Life:
    return Life(bench, tmp_path if request.param == "disk" else None)


async def test_what_is_not_sent_is_sent_later(life: Life) -> None:
    for _ in range(5):
        assert await life.round() is Outcome.ACCEPTED
        await life.check()
    # The control: without what is kept, the server would miss most of it.
    assert np.abs(life.counted() - life.trained()).max() > 0.1
    assert life.resets == []


@pytest.mark.parametrize("value_type", [ValueType.INT4, ValueType.FLOAT16])
async def test_what_coding_rounds_off_is_sent_later(
    bench: Bench, tmp_path: Path, value_type: ValueType
) -> None:
    life = Life(bench, tmp_path, dataclasses.replace(TOP_2, value_type=value_type))
    for _ in range(4):
        assert await life.round() is Outcome.ACCEPTED
    await life.check()


async def test_a_refused_update_takes_nothing_of_what_was_kept(life: Life) -> None:
    await life.round()
    before = await life.kept()
    life.bench.script.faults["SubmitInlineUpdate"].append(CLOSED)
    assert await life.round() is Outcome.ROUND_CLOSED
    assert life.bench.script.count("GetUploadStatus") == 0
    np.testing.assert_array_equal(await life.kept(), before)
    assert await life.round() is Outcome.ACCEPTED
    await life.check()


@pytest.mark.parametrize("is_taken", [False, True])
async def test_an_update_without_an_answer_is_asked_for(life: Life, is_taken: bool) -> None:
    await life.round()
    life.bench.script.faults["SubmitInlineUpdate"].append(LoseResponse() if is_taken else Status())
    assert await life.round() is Outcome.UNREACHABLE
    assert await life.round() is Outcome.ACCEPTED
    (asked,) = life.bench.script.requests("GetUploadStatus")
    assert isinstance(asked, pb.GetUploadStatusRequest)
    assert (asked.submission_id in life.bench.script.accepted) == is_taken
    assert len(life.bench.script.accepted) == 2 + is_taken
    await life.check()


@pytest.mark.parametrize("fault", [DEFECT, PROXY], ids=["defect", "proxy"])
async def test_a_refusal_that_is_not_the_servers_own_settles_nothing(
    life: Life, fault: Fault
) -> None:
    await life.round()
    life.bench.script.faults["SubmitInlineUpdate"].append(fault)
    assert await life.round() is Outcome.REFUSED
    assert await life.round() is Outcome.ACCEPTED
    assert life.bench.script.count("GetUploadStatus") == 1
    await life.check()


async def test_where_the_server_cannot_be_asked_the_device_waits(life: Life) -> None:
    await life.round()
    life.bench.script.faults["SubmitInlineUpdate"].append(LoseResponse())
    await life.round()
    trained = len(life.trainer.deltas)
    life.bench.script.faults["GetUploadStatus"].append(Status())
    assert await life.round() is Outcome.UNREACHABLE
    assert len(life.trainer.deltas) == trained
    assert await life.round() is Outcome.ACCEPTED
    await life.check()


@pytest.mark.parametrize(
    ("fault", "resets"),
    [
        (Refuse(errors_pb2.UNKNOWN_ROUND, grpc.StatusCode.NOT_FOUND), 0),
        (Refuse(errors_pb2.MALFORMED_REQUEST, grpc.StatusCode.INVALID_ARGUMENT), 1),
    ],
    ids=["unknown", "no-answer"],
)
async def test_what_the_server_can_never_tell_is_not_counted_twice(
    life: Life, fault: Fault, resets: int
) -> None:
    await life.round()
    before = await life.kept()
    life.bench.script.faults["SubmitInlineUpdate"].append(Status())
    await life.round()
    life.bench.script.faults["GetUploadStatus"].append(fault)
    await life.client._device.memory.settle(deadline_at=float("inf"))
    after = await life.kept()
    np.testing.assert_array_equal(after, np.zeros(DIM) if resets else before)
    await life.round()
    assert len(life.resets) == resets


async def test_a_round_that_is_missed_lets_what_is_kept_decay(bench: Bench) -> None:
    life = Life(bench, None, dataclasses.replace(TOP_2, residual_decay=0.5))
    await life.round()
    kept = await life.kept()
    bench.script.round += 2
    await life.round()
    codec = codec_for(life.plan, LAYERS)
    payload = bytes(list(bench.script.stored.values())[1])
    total = expand(life.plan, codec.decode(payload)) + await life.kept()
    np.testing.assert_allclose(total, life.trainer.deltas[1] + 0.25 * kept, atol=1e-5)


async def test_what_is_too_old_is_dropped(bench: Bench) -> None:
    life = Life(bench, None, dataclasses.replace(TOP_2, max_residual_age=3))
    await life.round()
    bench.script.round += 3
    await life.round()
    codec = codec_for(life.plan, LAYERS)
    payload = bytes(list(bench.script.stored.values())[1])
    total = expand(life.plan, codec.decode(payload)) + await life.kept()
    np.testing.assert_allclose(total, life.trainer.deltas[1], atol=1e-5)


async def test_a_damaged_file_is_an_event_and_no_failure(bench: Bench, tmp_path: Path) -> None:
    life = Life(bench, tmp_path)
    await life.round()
    damage(tmp_path)
    life.restart()
    assert await life.round() is Outcome.ACCEPTED
    (reset,) = life.resets
    assert "damaged" in reset


async def test_forgetting_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    life = Life(bench, tmp_path)
    await life.round()
    assert files_in(tmp_path)
    life.client.forget()
    assert files_in(tmp_path) == []
    assert not (await life.kept()).any()


async def test_a_plan_without_memory_keeps_nothing(bench: Bench, tmp_path: Path) -> None:
    life = Life(bench, tmp_path, dataclasses.replace(TOP_2, error_feedback=False))
    assert await life.round() is Outcome.ACCEPTED
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(folder: Path) -> None:
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")


class KillSwitch:
    """Ends the process at the n-th step that touches the disk or the server's knowledge."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.fatal: int | None = None
        for name in ("write", "rename", "remove"):
            self._wrap(monkeypatch, name)
        really = FederationTransport.submit

        async def submit(
            transport: FederationTransport, submission: Submission, *, deadline_at: float
        ) -> object:
            self._step()
            receipt = await really(transport, submission, deadline_at=deadline_at)
            self._step()
            return receipt

        monkeypatch.setattr(FederationTransport, "submit", submit)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        really = getattr(PrivateFolder, name)

        def wrapped(folder: PrivateFolder, *arguments: object) -> None:
            self._step()
            really(folder, *arguments)
            self._step()

        monkeypatch.setattr(PrivateFolder, name, wrapped)

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.fatal:
            raise Killed


async def live(life: Life, switch: KillSwitch, fatal: int | None) -> int:
    """Run five rounds, the fourth refused, and begin anew wherever the device is killed."""
    switch.steps, switch.fatal = 0, fatal
    deaths = 0
    for number in range(5):
        if number == 3:
            life.bench.script.faults["SubmitInlineUpdate"].append(CLOSED)
        try:
            await life.round()
        except Killed:
            deaths += 1
            life.restart()
    life.bench.script.faults["SubmitInlineUpdate"].clear()
    switch.fatal = None
    await life.check()
    return deaths


@pytest.mark.slow
async def test_a_device_killed_at_any_point_counts_everything_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = KillSwitch(monkeypatch)
    assert await live(Life(bench, tmp_path / "none"), switch, None) == 0
    # Five rounds of: pending written, submitted, pending renamed or removed. Before and after
    # each, but for the submission that is refused.
    steps = 29
    assert switch.steps == steps
    for fatal in range(1, steps + 1):
        bench.script.accepted.clear()
        bench.script.stored.clear()
        assert await live(Life(bench, tmp_path / str(fatal)), switch, fatal) == 1


@pytest.mark.parametrize("sabotage", ["commit", "drop"])
async def test_the_kill_test_finds_a_device_that_guesses(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: str
) -> None:
    # The negative control: a device that does not ask, and takes or drops what is pending.
    async def guess(memory: ErrorMemory, **_: object) -> None:
        if memory._store.pending():
            getattr(memory._store, sabotage)()

    switch = KillSwitch(monkeypatch)
    monkeypatch.setattr("client.compression.error_memory.ErrorMemory.settle", guess)
    # Killed before the second update is sent, and after it was.
    fatal = 9 if sabotage == "commit" else 10
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        await live(Life(bench, tmp_path), switch, fatal)


class Sealed:
    """A payload that is made while it is sent."""

    digest = bytes(16)

    def __len__(self) -> int:
        return 0

    def __getitem__(self, part: slice) -> bytes:
        return b""[part]


async def test_what_remains_belongs_to_the_payload_that_is_sent(bench: Bench) -> None:
    memory = Life(bench, None).client._device.memory
    first, second = np.ones(DIM, np.float32), np.zeros(DIM, np.float32)
    begun, other = Sealed(), Sealed()
    assert memory.remaining_of(b"plain", first) is first
    assert memory.remaining_of(begun, first) is first
    # Trained anew, and yet the shares that have left are those of the first update.
    assert memory.remaining_of(begun, second) is first
    assert memory.remaining_of(other, second) is second


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    config = dataclasses.replace(make_config("127.0.0.1:1"), state_dir=tmp_path / "file" / "state")
    with pytest.raises(ClientConfigError, match="state_dir="):
        MobileClient(config, RandomTrainer())


def test_the_plan_of_these_tests_is_one_that_devices_read() -> None:
    assert from_message(to_message(TOP_2), dim=DIM) == TOP_2


async def test_begin_that_cannot_be_kept_is_a_failure_the_device_survives(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(bench, tmp_path)
    await life.round()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("write", "remove"):
            patch.setattr(PrivateFolder, name, refuse)
        assert await life.round() is Outcome.FAILED
    assert len(bench.script.accepted) == 1
    assert await life.round() is Outcome.ACCEPTED
    await life.check()
