"""Forms of single settings: addresses, URLs, names. What is refused is told as a rule."""

import re
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from protos.wire import TASK_NAME

EMBEDDED: Final = "embedded"

_MAX_PORT: Final = 65_535
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_IPV6: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]+)?\]")
_VERSION: Final = re.compile(r"([0-9]+(\.[0-9]+)*)?")
_ONE_SERVER: Final = frozenset({"redis", "rediss", "unix"})


def split_address(address: str) -> tuple[str, int]:
    """Split host:port; IPv6 hosts in brackets.

    Raises:
        ValueError: if it has another form.
    """
    host, separator, port = address.rpartition(":")
    is_host = _HOST.fullmatch(host) or _IPV6.fullmatch(host)
    if not separator or not is_host or not _is_port(port):
        msg = f"address {address!r} must have the form host:port"
        raise ValueError(msg)
    return host.strip("[]"), int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= _MAX_PORT


def _address(value: str) -> str:
    try:
        split_address(value)
    except ValueError:
        msg = "must be host:port, such as 127.0.0.1:50051 or [::1]:50051"
        raise ValueError(msg) from None
    return value


def _optional_address(value: str) -> str:
    return _address(value) if value else value


def _task_name(value: str) -> str:
    if TASK_NAME.fullmatch(value) is None:
        msg = "must be 1 to 64 of a-z, 0-9 and -, and not start with -"
        raise ValueError(msg)
    return value


def _version(value: str) -> str:
    if _VERSION.fullmatch(value) is None:
        msg = "must be dotted numbers, such as 1.20, or empty"
        raise ValueError(msg)
    return value


def _store_url(value: str) -> str:
    if value == EMBEDDED:
        return value
    scheme, separator, _ = value.partition("://")
    if separator and re.fullmatch(r"(redis|rediss|valkey)\+?(sentinel|cluster)s?", scheme):
        msg = f"{scheme}:// is not supported: give the redis:// or rediss:// URL of one server"
        raise ValueError(msg)
    if not separator or scheme not in _ONE_SERVER:
        msg = f"must be {EMBEDDED!r} or a redis://, rediss:// or unix:// URL"
        raise ValueError(msg)
    url, port = _split_url(value)
    if scheme == "unix":
        if not url.path.strip("/"):
            msg = "names no socket: unix:// is followed by a path, as in unix:///run/valkey.sock"
            raise ValueError(msg)
        return value
    if "," in url.netloc.rpartition("@")[2]:
        msg = "names several servers: give the URL of one server"
        raise ValueError(msg)
    if port == 0 or re.fullmatch(r"(/[0-9]{0,9})?", url.path) is None or url.fragment:
        msg = f"must be {scheme}://[user:password@]host[:port][/number of the database]"
        raise ValueError(msg)
    return value


def _otlp_endpoint(value: str) -> str:
    if not value:
        return value
    scheme, separator, rest = value.rpartition("://")
    if separator and scheme not in {"http", "https"}:
        msg = "must start with http:// or https://, or be host:port alone, or empty"
        raise ValueError(msg)
    address = rest.removesuffix("/")
    try:
        split_address(address)
    except ValueError:
        msg = "must be host:port, such as localhost:4317, after http:// or https:// or nothing"
        raise ValueError(msg) from None
    return value


def _split_url(value: str) -> tuple[SplitResult, int | None]:
    try:
        url = urlsplit(value)
        port = url.port  # which is read only now
    except ValueError:
        msg = "is no URL: its host or its port cannot be read"
        raise ValueError(msg) from None
    return url, port


Address = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
TaskName = Annotated[str, AfterValidator(_task_name)]
Version = Annotated[str, AfterValidator(_version)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
OtlpEndpoint = Annotated[str, AfterValidator(_otlp_endpoint)]
