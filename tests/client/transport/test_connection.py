"""TLS, and the choice among several servers."""

import datetime as dt
import ipaddress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.config import ClientConfig, RetryPolicy, TlsFiles
from client.errors import TransportError
from client.runtime import Runtime
from client.transport.connection import ServerPool
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, DeviceState, Offer
from protos.fedagg.v1.federation_pb2_grpc import add_FederationServicer_to_server
from tests.client.federation import DEVICE, TASK, ScriptedFederation, make_config

OFFER = Offer(task=TASK, device_id=DEVICE, check_in_id="c-1", state=DeviceState(), max_wait_s=1.0)


async def test_devices_spread_over_the_servers_and_move_on_together() -> None:
    servers = tuple(f"127.0.0.1:{port}" for port in (1, 2, 3))

    def pool_of(device_id: str) -> ServerPool:
        return ServerPool(
            ClientConfig(servers=servers, task=TASK, device_id=device_id, insecure=True)
        )

    pools = [pool_of(f"device-{number}") for number in range(60)]
    assert {pool.current().position for pool in pools} == {0, 1, 2}

    first = pools[0].current()
    pools[0].move_on(first)
    second = pools[0].current()
    assert second.position == (first.position + 1) % 3
    pools[0].move_on(first)
    assert pools[0].current() is second
    for pool in pools:
        await pool.close()


async def test_both_sides_prove_who_they_are(tmp_path: Path, runtime: Runtime) -> None:
    tls = _issue(tmp_path)
    script = ScriptedFederation()
    server = grpc.aio.server()
    add_FederationServicer_to_server(script, server)
    credentials = grpc.ssl_server_credentials(
        [((tmp_path / "leaf.key").read_bytes(), (tmp_path / "leaf.pem").read_bytes())],
        root_certificates=(tmp_path / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()

    async def check_in(files: TlsFiles) -> object:
        config = ClientConfig(
            servers=(f"127.0.0.1:{port}",),
            task=TASK,
            device_id=DEVICE,
            tls=files,
            retry=RetryPolicy(max_attempts=1),
        )
        transport = FederationTransport(config, runtime=runtime)
        try:
            return await transport.check_in(OFFER)
        finally:
            await transport.close()

    assert isinstance(await check_in(tls), Assignment)
    with pytest.raises(TransportError):
        await check_in(TlsFiles(root_ca=tls.root_ca))
    with pytest.raises(TransportError):
        await check_in(TlsFiles(certificate=tls.certificate, private_key=tls.private_key))
    assert script.count("CheckIn") == 1
    await server.stop(None)


async def test_plain_text_does_not_reach_a_tls_server(runtime: Runtime, tmp_path: Path) -> None:
    _issue(tmp_path)
    script = ScriptedFederation()
    server = grpc.aio.server()
    add_FederationServicer_to_server(script, server)
    pair = ((tmp_path / "leaf.key").read_bytes(), (tmp_path / "leaf.pem").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    config = make_config(f"127.0.0.1:{port}", retry=RetryPolicy(max_attempts=1))
    transport = FederationTransport(config, runtime=runtime)
    with pytest.raises(TransportError):
        await transport.check_in(OFFER)
    await transport.close()
    await server.stop(None)


def _issue(folder: Path) -> TlsFiles:
    """Write ca.pem, leaf.pem and leaf.key; the leaf serves as server and as client."""
    ca_key, leaf_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    ca = _certificate(ca_name, ca_name, ca_key, ca_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DEVICE)])
    leaf = _certificate(leaf_name, ca_name, leaf_key, ca_key).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
        critical=False,
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "leaf.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "leaf.key").write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return TlsFiles(
        root_ca=folder / "ca.pem",
        certificate=folder / "leaf.pem",
        private_key=folder / "leaf.key",
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    assert issuer_key.key_size == 256
    # Valid whatever the wall clock says, so that no test ends one day.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2200, 1, 1, tzinfo=dt.UTC))
    )
