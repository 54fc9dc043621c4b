"""The services that every gRPC tool knows: health and reflection; and the probes over HTTP."""

from __future__ import annotations  # gRPC types are generic in the stubs only

from pathlib import Path
from typing import Final

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.service import CALL_TIMEOUT_S, Service, serving, status_of

FEDERATION: Final = "fedagg.v1.Federation"
ENROLLMENT: Final = "fedagg.v1.Enrollment"


async def test_health_says_serving(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", FEDERATION, ENROLLMENT):
        request = health_pb2.HealthCheckRequest(service=name)
        answer = await stub.Check(request, timeout=CALL_TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=CALL_TIMEOUT_S)
    assert await status_of(unknown) is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_learns_of_the_shutdown(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url) as service:
        stub = health_pb2_grpc.HealthStub(service.channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S)
        told = aiter(call)
        assert (await anext(told)).status == health_pb2.HealthCheckResponse.SERVING
        await service.server._health.enter_graceful_shutdown()
        assert (await anext(told)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        call.cancel()


async def test_reflection_lists_the_services(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=FEDERATION),
    ]
    call = stub.ServerReflectionInfo(iter(questions), timeout=CALL_TIMEOUT_S)
    listed, described = [answer async for answer in call]
    names = {found.name for found in listed.list_services_response.service}
    assert {FEDERATION, ENROLLMENT, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_ready_tells_what_is_wrong(service: Service) -> None:
    async with httpx.AsyncClient() as client:
        base = f"http://127.0.0.1:{service.server.http_port}"
        assert (await client.get(f"{base}/health")).status_code == 200
        answer = await client.get(f"{base}/ready")
        assert answer.status_code == 200
        assert set(answer.json()["checks"]) == {"round_store", "blob_store"}
        # The blob store's folder becomes something that holds no blobs.
        blobs = service.data_dir / "blobs"
        blobs.rename(service.data_dir / "elsewhere")
        blobs.write_text("not a folder")
        answer = await client.get(f"{base}/ready")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert [checks[name]["ok"] for name in ("round_store", "blob_store")] == [True, False]


@pytest.mark.parametrize("method", ["Enroll", "Nothing"])
async def test_an_unknown_method_is_unimplemented(service: Service, method: str) -> None:
    raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = service.channel.unary_unary(
        f"/{FEDERATION}/{method}"
    )
    assert await status_of(raw(b"", timeout=CALL_TIMEOUT_S)) is grpc.StatusCode.UNIMPLEMENTED
