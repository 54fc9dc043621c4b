"""Forms of single settings."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from server.config.formats import (
    Address,
    OptionalAddress,
    OtlpEndpoint,
    StoreUrl,
    TaskName,
    Version,
    split_address,
)
from tests.looped import looped


def _accepts(kind: Any) -> Callable[[str], bool]:
    def accepts(value: str) -> bool:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError:
            return False
        return True

    return accepts


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("[::1]:0", "::1", 0),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65_535),
        ("holder-1.example_net:50051", "holder-1.example_net", 50_051),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert _accepts(Address)(address)


@looped(
    "address",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:80",
        "a b:80",
        "h:\uff18",
    ],
)
def test_anything_else_is_no_address(address: str) -> None:
    assert not _accepts(Address)(address)
    assert _accepts(OptionalAddress)(address) is (address == "")


@looped(
    "url",
    [
        "embedded",
        "redis://host",
        "redis://host:6379/3?socket_keepalive=1",
        "rediss://user:p%40ss@redis.example.org:6379/0",
        "redis://[::1]:6379",
        "redis:///0",
        "unix:///run/valkey.sock?db=0",
        "unix://user:secret@/run/valkey.sock",
    ],
)
def test_a_store_is_embedded_or_one_server(url: str) -> None:
    assert _accepts(StoreUrl)(url)


@looped(
    "url",
    [
        "",
        "host:6379",
        "http://host",
        "redis:/host",
        "redis+sentinel://a:26379,b:26379/service",
        "rediss+sentinel://a",
        "redis+cluster://a",
        "redis+clusters://a",
        "redis://a:6379,b:6379",
        "redis://host:port",
        "redis://host:99999",
        "redis://host:0",
        "redis://host/name",
        "redis://host/0#x",
        "redis://[::1",
        "unix://",
        "unix:///",
    ],
)
def test_no_other_store_is_taken(url: str) -> None:
    assert not _accepts(StoreUrl)(url)


@pytest.mark.parametrize(
    "endpoint",
    ["", "localhost:4317", "http://localhost:4317", "https://[::1]:4317/", "[::1]:4317"],
)
def test_a_collector_is_named_with_or_without_a_scheme(endpoint: str) -> None:
    assert _accepts(OtlpEndpoint)(endpoint)


@pytest.mark.parametrize(
    "endpoint", ["localhost", "grpc://localhost:4317", "http://localhost", "http://h:4317/v1", "h:"]
)
def test_no_other_collector_is_taken(endpoint: str) -> None:
    assert not _accepts(OtlpEndpoint)(endpoint)


def test_names_of_tasks_and_versions_of_applications() -> None:
    names = {"digits": True, "a-1": True, "a" * 64: True, "": False, "-a": False, "A": False}
    names |= {"a" * 65: False, "a_b": False, "a\n": False, "ä": False}
    versions = {"": True, "1": True, "1.20.3": True, "1.": False, "v1": False, "1\n": False}
    assert {name: _accepts(TaskName)(name) for name in names} == names
    assert {version: _accepts(Version)(version) for version in versions} == versions
