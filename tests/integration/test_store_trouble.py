"""A store that goes away, or holds what nobody understands: what devices learn, and recovery."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from protos.fedagg.v1 import federation_pb2 as pb
from server.config.durability import Durability
from server.storage.embedded import EmbeddedStore
from tests.integration.service import (
    KEYS,
    TASK,
    Service,
    eventually,
    header,
    refusal_of,
    serving,
)

NOT_JSON: Final = "not JSON: /home/operator/keys"


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "store", durability=Durability.PROCESS) as store:
        yield store


@pytest.mark.process
async def test_a_store_that_restarts_is_waited_for(
    tmp_path: Path, own_store: EmbeddedStore
) -> None:
    async with serving(tmp_path, own_store.url) as service:
        await service.open_round("d1", "d2")
        payload = service.update()
        receipt = await service.inline(header("d1", payload), payload)
        own_store.stop()
        for call in (
            service.check_in("d1"),
            service.inline(header("d2", payload), payload),
            service.stream(header("d2", payload), payload),
            service.upload_status(header("d1", payload)),
        ):
            refusal = await refusal_of(call)
            assert refusal.code is grpc.StatusCode.UNAVAILABLE
            assert refusal.reason == "STORE_UNAVAILABLE"
            assert 0 < refusal.retry_after_ms <= 60_000
        own_store.start()
        # Nothing that was acknowledged is lost, and the round goes on.
        assert await service.inline(header("d1", payload), payload) == receipt
        await service.inline(header("d2", payload), payload)
        assert (await service.finished(1))["accepted"] == 2

        async def next_round() -> pb.Assignment | None:
            answer = await service.check_in("d1", "c2", max_wait_ms=0)
            await service.check_in("d2", "c2", max_wait_ms=0)
            return answer.assignment if answer.HasField("assignment") else None

        assert (await eventually(next_round)).model_version == 2


async def test_a_defect_tells_the_peer_nothing(service: Service) -> None:
    async def is_open() -> str | None:
        phase: str | None = (await service.get(f"/api/v1/tasks/{TASK}"))["phase"]
        return phase

    assert await eventually(is_open) == "selecting"
    service.store.hset(KEYS + "models", "1", NOT_JSON)
    for call in (service.fetch(1), service.open_round("d1", "d2")):
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
        assert refusal.message == "internal error"
    for method in ("FetchModel", "CheckIn"):
        counted = await service.metric(
            "federated_rpc_requests_total",
            method=f"/fedagg.v1.Federation/{method}",
            code="INTERNAL",
        )
        assert counted >= 1


async def test_a_task_named_like_an_attack_is_only_unknown(service: Service) -> None:
    for name in ("{digits}", "digits}:task", "*", "x" * 10_000, TASK.upper()):
        refusal = await refusal_of(service.fetch(task=name))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK")
        assert len(refusal.message) < 200
