"""One model file, fetched in as many attempts as the network needs."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import hashlib
from typing import TYPE_CHECKING

import grpc

from client.errors import ModelIntegrityError, TransportError
from client.transport.server_messages import fetch_request
from client.transport.stall import StallGuard

if TYPE_CHECKING:
    from client.transport.messages import ModelRequest
    from client.transport.tracing import GrpcMetadata
    from protos.fedagg.v1.federation_pb2 import ModelChunk
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub


class ModelDownload:
    """Collects the file; every attempt goes on where the last one broke off.

    Memory: the file once. Only a file of the announced size and SHA-256 ever leaves.
    """

    def __init__(self, model: ModelRequest, *, stall_timeout_s: float) -> None:
        self._model = model
        self._stall_timeout_s = stall_timeout_s
        self._data = bytearray()

    @property
    def received_bytes(self) -> int:
        """Bytes of the file that are here."""
        return len(self._data)

    async def attempt(
        self, stub: FederationAsyncStub, *, metadata: GrpcMetadata, timeout_s: float | None
    ) -> bytes:
        """Fetch what is missing and return the verified file.

        Raises:
            TransportError: if the stream ended early or stalled; what arrived is kept.
            grpc.aio.AioRpcError: if the call failed; what arrived is kept.
            ModelIntegrityError: if the server sends another file than the announced one.
        """
        call = stub.FetchModel(
            fetch_request(self._model, offset=self.received_bytes),
            metadata=metadata,
            timeout=timeout_s,
        )
        try:
            async with StallGuard(self._stall_timeout_s) as guard:
                async for chunk in call:
                    guard.moved()
                    self._accept(chunk)
        except grpc.aio.AioRpcError:
            # The last byte may arrive and the status that follows it may not.
            if self.received_bytes < self._model.total_bytes:
                raise
        finally:
            call.cancel()
        return self._verified()

    def _accept(self, chunk: ModelChunk) -> None:
        model = self._model
        announced = (model.model_version, model.total_bytes, model.sha256)
        if (chunk.model_version, chunk.total_bytes, chunk.sha256) != announced:
            raise ModelIntegrityError(
                f"asked for (version, bytes, sha256) {announced}, got "
                f"{(chunk.model_version, chunk.total_bytes, chunk.sha256)}"
            )
        if chunk.offset != self.received_bytes:
            raise ModelIntegrityError(
                f"chunk at offset {chunk.offset}, expected {self.received_bytes}"
            )
        if chunk.offset + len(chunk.data) > model.total_bytes:
            raise ModelIntegrityError(f"more than the announced {model.total_bytes} bytes arrived")
        self._data += chunk.data

    def _verified(self) -> bytes:
        if self.received_bytes < self._model.total_bytes:
            raise TransportError(
                f"the model stream ended after {self.received_bytes} bytes "
                f"of {self._model.total_bytes}"
            )
        found = hashlib.sha256(self._data).hexdigest()
        if found != self._model.sha256:
            raise ModelIntegrityError(f"the model hashes to {found}, not {self._model.sha256}")
        return bytes(self._data)
