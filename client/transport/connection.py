"""Channels to the servers, and the one that is used now."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from client.config import ClientConfig, TlsFiles
from client.errors import ClientConfigError
from protos.fedagg.v1.federation_pb2_grpc import FederationStub

if TYPE_CHECKING:
    from pathlib import Path

    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

# Retries are ours alone (retry.py). A server that restarts is found again within seconds, where
# gRPC's own reconnection would wait up to two minutes.
CHANNEL_OPTIONS: Final = (
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One configured address and its open channel."""

    position: int
    channel: grpc.aio.Channel
    stub: FederationAsyncStub


class ServerPool:
    """Opens a channel per address when it is needed; many clients may share one pool.

    Used from one event loop. Devices start at different addresses, by a hash of their ids.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._servers = config.servers
        self._credentials = channel_credentials(config.tls) if config.tls else None
        self._server_name = config.tls.server_name if config.tls else None
        self._endpoints: dict[int, Endpoint] = {}
        self._position = zlib.crc32(config.device_id.encode()) % len(config.servers)

    def current(self) -> Endpoint:
        """Return the endpoint to use for the next call."""
        if self._position not in self._endpoints:
            channel = self._open(self._servers[self._position])
            self._endpoints[self._position] = Endpoint(
                position=self._position, channel=channel, stub=FederationStub(channel)
            )
        return self._endpoints[self._position]

    def move_on(self, lost: Endpoint) -> None:
        """Use the next address from now on, unless another call has moved on already."""
        if lost.position == self._position:
            self._position = (self._position + 1) % len(self._servers)

    async def close(self) -> None:
        """Close every channel; calls in flight are cancelled."""
        endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            await endpoint.channel.close()

    def _open(self, target: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        override = (
            (("grpc.ssl_target_name_override", self._server_name),) if self._server_name else ()
        )
        return grpc.aio.secure_channel(
            target, self._credentials, options=(*CHANNEL_OPTIONS, *override)
        )


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """Read the files of `tls`.

    Raises:
        ClientConfigError: if one cannot be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.root_ca),
        private_key=_read(tls.private_key),
        certificate_chain=_read(tls.certificate),
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClientConfigError(f"cannot read {path}: {error.strerror}") from error
