"""A gRPC server that only answers: what the transport costs with nothing behind it.

Same library, event loop and channel options as a coordinator, same method names and shapes, and
answers as long as real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import grpc
import uvloop

from protos.fedagg.v1 import federation_pb2 as pb
from server.production_server import OPTIONS

SERVICE: Final = "fedagg.v1.Federation"

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[bytes, bytes]


async def serve(address: str, *, batch: int) -> None:
    """Answer on `address` until SIGTERM."""
    server = grpc.aio.server(options=OPTIONS)
    handlers = grpc.method_handlers_generic_handler(SERVICE, _handlers(batch))
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(address)
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    sys.stderr.write('{"event": "serving"}\n')
    sys.stderr.flush()
    await stopping.wait()
    await server.stop(1)


def _handlers(batch: int) -> dict[str, Handler]:
    receipt = pb.SubmissionReceipt(
        task="inline",
        round=1,
        device_id="bench-000000",
        submission_id="u000000",
        payload_digest=bytes(16),
        accepted_at_ms=1 << 40,
    )
    outcomes = [pb.SubmissionOutcome(receipt=receipt)] * batch
    single = receipt.SerializeToString()
    many = pb.SubmitUpdatesResponse(batch_id=1, outcomes=outcomes).SerializeToString()

    async def unary(_request: bytes, _context: object) -> bytes:
        return single

    async def chunked(messages: AsyncIterator[bytes], _context: object) -> bytes:
        async for _ in messages:
            pass
        return single

    async def batched(messages: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for _ in messages:
            yield many

    return {
        "SubmitInlineUpdate": grpc.unary_unary_rpc_method_handler(unary),
        "SubmitUpdate": grpc.stream_unary_rpc_method_handler(chunked),
        "SubmitUpdates": grpc.stream_stream_rpc_method_handler(batched),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run one echo server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.echo_server")
    parser.add_argument("--address", required=True)
    parser.add_argument("--batch", type=int, required=True, help="outcomes of a batch's answer")
    arguments = parser.parse_args(argv)
    uvloop.run(serve(arguments.address, batch=arguments.batch))


if __name__ == "__main__":
    main()
