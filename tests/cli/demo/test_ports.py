import socket

import pytest

from cli.demo.ports import ReservedPorts


def _listener(port: int, *, reuse: bool) -> socket.socket:
    one = socket.socket()
    if reuse:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        one.close()
        raise
    one.listen()
    return one


def test_only_who_shares_ports_can_listen_on_a_reserved_one() -> None:
    with ReservedPorts(3) as ports:
        assert len(set(ports.addresses)) == 3
        port = int(ports.addresses[0].rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            _listener(port, reuse=False)
        with _listener(port, reuse=True), socket.create_connection(("127.0.0.1", port)):
            pass


def test_nobody_answers_at_a_port_that_is_only_reserved() -> None:
    with ReservedPorts(1) as ports:
        port = int(ports.addresses[0].rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
