"""What a configuration refuses, and how it says so."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.config import ClientConfig, RetryPolicy, SharingConfig, TlsFiles
from client.errors import ClientConfigError
from client.transport.connection import ServerPool
from tests.looped import looped


def config(**changes: object) -> ClientConfig:
    fields = {"servers": ("127.0.0.1:50051",), "task": "t", "device_id": "d", "insecure": True}
    return ClientConfig(**{**fields, **changes})  # type: ignore[arg-type]  # wrong types on purpose


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:50051", "host.example-1:1", "[::1]:50051", "dns:///host:65535", "unix:/run/x.sock"],
)
def test_addresses_that_grpc_understands_are_accepted(server: str) -> None:
    assert config(servers=(server, "other:2")).servers == (server, "other:2")


@looped(
    "changes, message",
    [
        ({"servers": ()}, "servers="),
        ({"servers": "127.0.0.1:50051"}, "must be a tuple"),
        ({"servers": ("host",)}, "server 'host'"),
        ({"servers": ("host:0",)}, "host:0"),
        ({"servers": ("host:65536",)}, "host:65536"),
        ({"servers": ("http://host:80",)}, "http"),
        ({"task": "Digits"}, "task='Digits'"),
        ({"task": "a" * 65}, "task="),
        ({"device_id": "a b"}, "device_id='a b'"),
        ({"device_id": ""}, "device_id="),
        ({"insecure": False}, "tls is missing"),
        ({"tls": TlsFiles()}, "contradict"),
        ({"call_timeout_s": 0.0}, "call_timeout_s=0.0"),
        ({"call_timeout_s": float("nan")}, "call_timeout_s=nan"),
        ({"stall_timeout_s": -1.0}, "stall_timeout_s"),
        ({"max_wait_s": 60.5}, "max_wait_s"),
        ({"chunk_bytes": 256 * 1024 - 1}, "chunk_bytes"),
        ({"chunk_bytes": 1024 * 1024 + 1}, "chunk_bytes"),
        ({"inline_max_bytes": -1}, "inline_max_bytes"),
        ({"inline_max_bytes": 1024 * 1024 + 1}, "inline_max_bytes"),
        ({"max_model_bytes": 0}, "max_model_bytes"),
        ({"deadline_margin_s": -0.1}, "deadline_margin_s"),
        ({"progress_interval_s": 0.0}, "progress_interval_s"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ClientConfigError, match=message):
        config(**changes)


def test_certificate_and_key_come_together() -> None:
    with pytest.raises(ClientConfigError, match="together"):
        TlsFiles(certificate=Path("cert.pem"))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    tls = TlsFiles(root_ca=missing)
    with pytest.raises(ClientConfigError, match=r"ca\.pem"):
        ServerPool(config(tls=tls, insecure=False))


@given(
    failures=st.integers(1, 5_000),
    hint_s=st.none() | st.floats(0, 1e6),
    seed=st.integers(0, 2**32),
)
def test_delay_lies_between_the_hint_and_the_ceiling_above_it(
    failures: int, hint_s: float | None, seed: int
) -> None:
    policy = RetryPolicy(initial_s=0.5, max_s=30, multiplier=2)
    delay = policy.delay_s(failures=failures, rng=random.Random(seed), hint_s=hint_s)
    floor = hint_s or 0.0
    ceiling = 30 if failures > 6 else 0.5 * 2 ** (failures - 1)
    assert floor <= delay <= floor + ceiling


def test_jitter_fills_the_whole_range() -> None:
    rng = random.Random(1)
    delays = [RetryPolicy(max_s=4).delay_s(failures=9, rng=rng) for _ in range(2_000)]
    # A quarter of a uniform sample lies in each quarter; 5 standard deviations are 97.
    for low in range(4):
        assert abs(sum(low <= delay < low + 1 for delay in delays) - 500) < 97


@looped(
    "arguments",
    [
        {"initial_s": 0.0},
        {"initial_s": float("nan")},
        {"initial_s": 5.0, "max_s": 4.0},
        {"multiplier": 0.5},
        {"max_attempts": 0},
        {"total_s": -1.0},
    ],
)
def test_a_policy_out_of_range_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ClientConfigError, match=next(reversed(arguments))):
        RetryPolicy(**arguments)  # type: ignore[arg-type]  # floats for the one int field too


def test_the_patience_with_holders_is_above_zero(tmp_path: Path) -> None:
    with pytest.raises(ClientConfigError, match="holder_patience_s=0 must be > 0"):
        SharingConfig(committee=tmp_path, holder_patience_s=0)
