"""A whole device in shared rounds, against a real server that follows a script."""

import dataclasses
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc
import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from client.config import ClientConfig, RetryPolicy, SharingConfig
from client.errors import ErrorReason, RefusedError
from client.hooks import EventKind
from client.outcome import Outcome
from client.sharing.update_sealer import seal_update
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, Progress, RoundStatus, Submission
from client.transport.server_messages import check_in_answer
from privacy.clipping import clip_by_norm
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.client.bench import Bench, ShiftTrainer
from tests.client.committee import CLIP_NORM, Holders, make_holders
from tests.client.federation import (
    DEVICE,
    TASK,
    BreakAfter,
    LoseResponse,
    Refuse,
    ScriptedFederation,
    Status,
    make_config,
    serve,
)

CLOSED: Final = Refuse(errors_pb2.ROUND_CLOSED, grpc.StatusCode.FAILED_PRECONDITION)
WRONG_VERSION: Final = Refuse(errors_pb2.WRONG_MODEL_VERSION, grpc.StatusCode.FAILED_PRECONDITION)
BUFFERED: Final = (4, 2, 1)


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return make_holders(tmp_path_factory.mktemp("holders"))


def config_of(
    bench: Bench, sharing: SharingConfig | None, inline_max_bytes: int = 64 * 1024
) -> ClientConfig:
    config = make_config(bench.address, inline_max_bytes=inline_max_bytes)
    return dataclasses.replace(config, sharing=sharing)


def open_round(bench: Bench, holders: Holders, number: int, **terms: object) -> RoundParameters:
    """Make the script's round the `number`-th, a shared one on model version `number` - 1."""
    bench.script.round, bench.script.model_version = number, number - 1
    return holders.share(bench.script, **terms)


def headers(bench: Bench, method: str) -> list[pb.UpdateHeader]:
    requests = bench.script.requests(method)
    return [r.header if isinstance(r, pb.InlineUpdate) else r for r in requests]  # type: ignore[misc]  # the scripted calls take these two


async def test_the_server_gets_what_only_the_holders_can_open(
    bench: Bench, holders: Holders
) -> None:
    params = holders.share(bench.script)
    outcome = await bench.client(config=config_of(bench, holders.sharing())).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    assert outcome.metrics.staleness == 0
    (bundle,) = bench.script.stored.values()
    assert outcome.bytes_up == len(bundle)
    expected = clip_by_norm(np.ones(7, dtype=np.float32), CLIP_NORM)
    opened = holders.update(params, bytes(bundle), 2, 3)
    np.testing.assert_allclose(opened, expected, atol=1e-6, rtol=0)
    assert expected.tobytes()[:8] not in bundle


@pytest.mark.parametrize("tells", [False, True])
async def test_the_server_learns_of_the_training_only_where_it_is_told(
    bench: Bench, holders: Holders, tells: bool
) -> None:
    holders.share(bench.script)
    sharing = dataclasses.replace(holders.sharing(), tells_training=tells)
    outcome = await bench.client(config=config_of(bench, sharing)).participate_once()
    (header,) = headers(bench, "SubmitInlineUpdate")
    losses = (header.HasField("loss_before"), header.HasField("loss_after"))
    assert losses == (tells, tells)
    assert header.num_samples == (20 if tells else 1)
    # The application sees them either way.
    assert (outcome.metrics.num_samples, outcome.metrics.loss_after) == (20, 1.5)


@pytest.mark.parametrize(
    ("method", "inline_max_bytes", "fault"),
    [
        ("SubmitInlineUpdate", 64 * 1024, Status()),
        ("SubmitInlineUpdate", 64 * 1024, LoseResponse()),
        ("SubmitUpdate", 0, LoseResponse()),
        ("SubmitUpdate", 0, BreakAfter(1_000_000)),
    ],
)
async def test_every_retry_sends_the_same_sealed_bytes(
    bench: Bench,
    holders: Holders,
    method: str,
    inline_max_bytes: int,
    fault: Status | LoseResponse | BreakAfter,
) -> None:
    if inline_max_bytes == 0:
        bench.serve_big_model()
    bench.script.max_update_bytes = 1 << 24
    params = holders.share(bench.script, format=ShareFormat.SHAMIR_SEEDED)
    bench.script.faults[method].append(fault)
    config = config_of(bench, holders.sharing(), inline_max_bytes)
    outcome = await bench.client(config=config).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    (bundle,) = bench.script.stored.values()
    # The script refuses bytes of two sealings: their digest is none of the two.
    opened = holders.update(params, bytes(bundle), 1, 3)
    assert np.linalg.norm(opened) == pytest.approx(CLIP_NORM, abs=1e-3)
    digests = {header.payload_digest for header in headers(bench, method)}
    assert digests == {xxhash.xxh3_128_digest(bytes(bundle))}


async def test_what_a_transform_makes_of_the_update_is_clipped_again(
    bench: Bench, holders: Holders
) -> None:
    params = holders.share(bench.script)
    client = bench.client(
        config=config_of(bench, holders.sharing()), transform=lambda update, _: -50 * update
    )
    assert (await client.participate_once()).outcome is Outcome.ACCEPTED
    (bundle,) = bench.script.stored.values()
    opened = holders.update(params, bytes(bundle), 1, 2)
    np.testing.assert_allclose(opened, np.full(7, -(7**-0.5)), atol=1e-6)


async def test_a_plain_round_gets_nothing_from_a_device_that_seals(
    bench: Bench, holders: Holders
) -> None:
    trainer = ShiftTrainer()
    config = config_of(bench, holders.sharing())
    outcome = await bench.client(trainer, config=config).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.WEAKER_THAN_POLICY
    assert (trainer.plans, dict(bench.script.stored)) == ([], {})
    (report,) = bench.script.requests("ReportProgress")
    assert isinstance(report, pb.ReportProgressRequest)
    assert report.stage == pb.ReportProgressRequest.FAILED


async def test_a_device_that_need_not_seal_takes_part_in_plain_rounds(
    bench: Bench, holders: Holders
) -> None:
    config = config_of(bench, holders.sharing(required=False))
    outcome = await bench.client(config=config).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    assert outcome.bytes_up == 16 + 4 * 7


async def test_a_shared_round_gets_nothing_from_a_device_that_cannot_seal(
    bench: Bench, holders: Holders
) -> None:
    holders.share(bench.script)
    outcome = await bench.client(config=config_of(bench, None)).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.reason is ErrorReason.WEAKER_THAN_POLICY
    assert not bench.script.stored


async def test_a_round_weaker_than_the_policy_gets_nothing(bench: Bench, holders: Holders) -> None:
    holders.share(bench.script, min_members=4)
    config = config_of(bench, holders.sharing(min_members=5))
    outcome = await bench.client(config=config).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert "min_members=4 of the round must be at least 5" in outcome.detail
    assert not bench.script.stored


@pytest.mark.parametrize(("limit", "trained"), [(1_000, 0), (4_000, 1)])
async def test_a_sealed_update_that_is_too_large_is_not_sent(
    bench: Bench, holders: Holders, limit: int, trained: int
) -> None:
    # Between the two limits lies the part in front of the shares, known only once it is sealed.
    params = holders.share(bench.script)
    assert 1_000 < params.body_bytes(0) < 4_000
    bench.script.max_update_bytes = limit
    trainer = ShiftTrainer()
    config = config_of(bench, holders.sharing())
    outcome = await bench.client(trainer, config=config).participate_once()
    assert outcome.outcome is Outcome.REFUSED
    assert "UPDATE_TOO_LARGE" in outcome.detail
    assert len(trainer.plans) == trained
    assert not bench.script.stored


@pytest.mark.parametrize("fault", [CLOSED, WRONG_VERSION])
async def test_an_update_that_has_left_is_in_no_other_round_whatever_the_server_says(
    bench: Bench, holders: Holders, fault: Refuse
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.faults["SubmitInlineUpdate"].append(fault)
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is not Outcome.ACCEPTED
    assert EventKind.KEPT not in bench.kinds()
    open_round(bench, holders, 4, staleness_weights=BUFFERED)
    assert (await client.participate_once()).metrics.staleness == 0
    assert len(trainer.plans) == 2


async def test_an_update_that_missed_its_round_is_sealed_for_the_next(
    bench: Bench, holders: Holders
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.round_open = False
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is Outcome.ROUND_CLOSED
    assert bench.kinds()[-2:] == [EventKind.KEPT, EventKind.ENDED]
    assert bench.script.count("SubmitInlineUpdate") == 0
    bench.script.round_open = True
    params = open_round(bench, holders, 4, staleness_weights=BUFFERED)
    outcome = await client.participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    assert bench.kinds()[-5:] == [
        EventKind.ASSIGNED,
        EventKind.REUSED,
        EventKind.SUBMITTING,
        EventKind.ACCEPTED,
        EventKind.ENDED,
    ]
    assert (len(trainer.plans), bench.script.count("FetchModel")) == (1, 1)
    assert (outcome.round, outcome.model_version, outcome.metrics.staleness) == (4, 2, 1)
    assert outcome.metrics.num_samples == 20
    (header,) = headers(bench, "SubmitInlineUpdate")
    assert (header.round, header.model_version) == (4, 2)
    bundle = bytes(bench.script.stored[header.submission_id])
    assert holders.header(bundle).header.model_version == 2
    opened = holders.update(params, bundle, 1, 2)
    np.testing.assert_allclose(opened, np.full(7, 7**-0.5), atol=1e-6)


async def test_an_update_that_was_accepted_is_not_sent_again(
    bench: Bench, holders: Holders
) -> None:
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    for number in (3, 4):
        open_round(bench, holders, number, staleness_weights=BUFFERED)
        assert (await client.participate_once()).model_version == number - 1
    assert len(trainer.plans) == 2
    assert EventKind.KEPT not in bench.kinds()


async def test_an_update_is_never_sent_to_the_same_round_twice(
    bench: Bench, holders: Holders
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.round_open = False
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    await client.participate_once()
    bench.script.round_open = True
    await client.participate_once()
    assert len(trainer.plans) == 2
    assert EventKind.REUSED not in bench.kinds()


async def test_an_update_without_an_answer_is_not_kept(bench: Bench, holders: Holders) -> None:
    # The server may hold it: sent to another round it could count twice.
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.faults["SubmitInlineUpdate"].extend([LoseResponse(), LoseResponse()])
    config = dataclasses.replace(
        config_of(bench, holders.sharing()), retry=RetryPolicy(max_attempts=2)
    )
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config)
    assert (await client.participate_once()).outcome is Outcome.UNREACHABLE
    open_round(bench, holders, 4, staleness_weights=BUFFERED)
    assert (await client.participate_once()).model_version == 3
    assert len(trainer.plans) == 2


@pytest.mark.parametrize(
    "reason", [errors_pb2.ALREADY_CONTRIBUTED, errors_pb2.WRONG_ROUND_PARAMETERS]
)
async def test_an_update_that_was_refused_for_what_it_is_is_not_kept(
    bench: Bench, holders: Holders, reason: errors_pb2.ErrorReason.ValueType
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    refusal = Refuse(reason, grpc.StatusCode.INVALID_ARGUMENT)
    bench.script.faults["SubmitInlineUpdate"].append(refusal)
    client = bench.client(config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is Outcome.REFUSED
    assert EventKind.KEPT not in bench.kinds()


async def test_a_stale_update_whose_version_is_refused_is_trained_anew(
    bench: Bench, holders: Holders
) -> None:
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    bench.script.faults["SubmitInlineUpdate"].append(WRONG_VERSION)
    for number in (3, 4, 5):
        bench.script.round_open = number > 3
        open_round(bench, holders, number, staleness_weights=BUFFERED)
        outcome = await client.participate_once()
    assert (outcome.outcome, outcome.metrics.staleness) == (Outcome.ACCEPTED, 0)
    assert len(trainer.plans) == 2


async def test_an_update_whose_round_ended_while_it_was_sent_is_not_kept(
    bench: Bench, holders: Holders
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.ttl_ms = 10_000
    busy = Refuse(errors_pb2.OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=60_000)
    bench.script.faults["SubmitInlineUpdate"].append(busy)
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is Outcome.DEADLINE_MISSED
    open_round(bench, holders, 4, staleness_weights=BUFFERED)
    assert (await client.participate_once()).metrics.staleness == 0
    assert len(trainer.plans) == 2


@pytest.mark.parametrize(
    ("later_round", "terms", "limit"),
    [
        (6, {"staleness_weights": BUFFERED}, None),  # three versions behind, two allowed
        (4, {"staleness_weights": (1,)}, None),
        (5, {"staleness_weights": BUFFERED}, 1),
    ],
)
async def test_an_update_that_no_round_takes_any_more_is_trained_anew(
    bench: Bench, holders: Holders, later_round: int, terms: dict[str, object], limit: int | None
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.round_open = False
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing(max_staleness=limit)))
    await client.participate_once()
    assert EventKind.KEPT in bench.kinds()
    bench.script.round_open = True
    open_round(bench, holders, later_round, **terms)
    outcome = await client.participate_once()
    assert outcome.model_version == later_round - 1
    assert outcome.metrics.staleness == 0
    assert len(trainer.plans) == 2


async def test_an_update_can_miss_several_rounds(bench: Bench, holders: Holders) -> None:
    trainer = ShiftTrainer()
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    for number in (3, 4, 5):
        bench.script.round_open = number == 5
        open_round(bench, holders, number, staleness_weights=BUFFERED)
        outcome = await client.participate_once()
    assert (outcome.outcome, outcome.metrics.staleness) == (Outcome.ACCEPTED, 2)
    assert len(trainer.plans) == 1


async def test_nothing_is_kept_of_rounds_that_take_no_stale_update(
    bench: Bench, holders: Holders
) -> None:
    open_round(bench, holders, 3)
    bench.script.faults["SubmitInlineUpdate"].append(CLOSED)
    client = bench.client(config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is Outcome.ROUND_CLOSED
    assert EventKind.KEPT not in bench.kinds()


async def test_a_round_that_closes_during_training_gets_its_update_later(
    bench: Bench, holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    told, stops = threading.Event(), []
    report = FederationTransport.report_progress

    async def told_report(transport: FederationTransport, progress: Progress) -> RoundStatus:
        status = await report(transport, progress)
        told.set()
        return status

    def until_closed(should_stop: Callable[[], bool]) -> None:
        bench.script.round_open = False
        told.wait()
        stops.append(should_stop())

    monkeypatch.setattr(FederationTransport, "report_progress", told_report)

    config = dataclasses.replace(config_of(bench, holders.sharing()), progress_interval_s=5.0)
    trainer = ShiftTrainer(during=until_closed)
    client = bench.client(trainer, config=config)
    outcome = await client.participate_once()
    # It was worth finishing, and not worth sending yet.
    assert (outcome.outcome, stops) == (Outcome.ROUND_CLOSED, [False])
    assert bench.script.count("SubmitInlineUpdate") == 0
    bench.script.round_open = True
    trainer.during = None
    open_round(bench, holders, 4, staleness_weights=BUFFERED)
    assert (await client.participate_once()).metrics.staleness == 1
    assert len(trainer.plans) == 1


async def test_training_that_takes_too_long_is_kept_too(bench: Bench, holders: Holders) -> None:
    open_round(bench, holders, 3, staleness_weights=BUFFERED)
    bench.script.ttl_ms = 10_000

    def overrun(_should_stop: Callable[[], bool]) -> None:
        bench.time.now += 9.75

    trainer = ShiftTrainer(during=overrun)
    client = bench.client(trainer, config=config_of(bench, holders.sharing()))
    assert (await client.participate_once()).outcome is Outcome.DEADLINE_MISSED
    open_round(bench, holders, 4, staleness_weights=BUFFERED)
    assert (await client.participate_once()).metrics.staleness == 1
    assert len(trainer.plans) == 1


class _Sink(ScriptedFederation):
    """Keeps nothing of an upload but its digest."""

    async def SubmitUpdate(  # noqa: N802 (the protocol's name)
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: object
    ) -> pb.SubmissionReceipt:
        del context
        header = (await anext(aiter(request_iterator))).header
        digest = xxhash.xxh3_128()
        async for part in request_iterator:
            digest.update(part.data)
        assert digest.digest() == header.payload_digest
        return pb.SubmissionReceipt(
            task=header.task,
            round=header.round,
            device_id=header.device_id,
            submission_id=header.submission_id,
            payload_digest=header.payload_digest,
            accepted_at_ms=1,
        )


@pytest.mark.slow
async def test_a_large_update_is_never_in_memory_as_a_whole(holders: Holders) -> None:
    dim = 2_000_000
    script = _Sink(dim=dim)
    params = holders.share(script, format=ShareFormat.SHAMIR_SEEDED)
    served = await serve(script)
    config = dataclasses.replace(make_config(served.address), sharing=holders.sharing())
    vector = np.full(dim, 1e-4, dtype=np.float32)
    payload_bytes = 2 * params.body_bytes(0)
    assert payload_bytes > 32e6
    transport = FederationTransport(config)
    tracemalloc.start()
    await transport.submit(_sealed_submission(script, config, vector))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await transport.close()
    await served.stop()
    assert transport.traffic.bytes_up > payload_bytes
    # Some chunks of 1 MiB of each body, and messages of half of one under way.
    assert peak_bytes < payload_bytes / 2


def _sealed_submission(
    script: ScriptedFederation, config: ClientConfig, vector: NDArray[np.float32]
) -> Submission:
    assignment = check_in_answer(script.assignment())
    assert isinstance(assignment, Assignment)
    return Submission(
        task=TASK,
        round=assignment.round,
        device_id=DEVICE,
        submission_id="s-1",
        model_version=assignment.model_version,
        num_samples=1,
        payload=seal_update(vector, assignment, config),
    )


PROGRAM: Final = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"cryptography", "numba", "torch", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from pathlib import Path
from client import ClientConfig, ClientConfigError, MobileClient, SharingConfig
config = ClientConfig(
    servers=("127.0.0.1:1",), task="t", device_id="d", insecure=True,
    sharing=SharingConfig(
        committee=Path("c"), certificate=Path("a"), private_key=Path("b")
    ),
)
try:
    MobileClient(config, None)
except ClientConfigError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert (
        run.stdout == "sharing needs the extra fedagg[shared]: there is no package cryptography\n"
    )
