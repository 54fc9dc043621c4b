"""Health: which checks count, and how probes fail."""

import asyncio

import pytest

from monitoring.health import Check, Health, run_probes


@pytest.mark.parametrize(
    ("checks", "is_ready"),
    [
        ({}, True),
        ({"store": Check(ok=True)}, True),
        ({"store": Check(ok=False)}, False),
        ({"store": Check(ok=True), "blobs": Check(ok=False)}, False),
        ({"store": Check(ok=True), "traces": Check(ok=False, critical=False)}, True),
    ],
)
def test_ready_where_every_critical_check_is_ok(checks: dict[str, Check], is_ready: bool) -> None:
    assert Health(checks=checks).is_ready is is_ready


def test_a_health_value_does_not_change_with_the_mapping_it_was_made_from() -> None:
    checks = {"store": Check(ok=True)}
    health = Health(checks=checks)
    checks["store"] = Check(ok=False)
    assert health.is_ready


async def good() -> str:
    return "2 replicas"


async def leaking() -> str:
    msg = "redis://user:password@host"
    raise ConnectionError(msg)


async def hanging() -> str:
    await asyncio.Event().wait()
    return "never"


async def test_probes_report_without_leaking() -> None:
    health = await run_probes(
        {"good": good, "leaking": leaking, "hanging": hanging},
        optional=frozenset({"hanging"}),
        timeout_s=0.01,
    )
    assert list(health.checks) == ["good", "leaking", "hanging"]
    assert health.checks["good"] == Check(ok=True, detail="2 replicas")
    assert health.checks["leaking"] == Check(ok=False, detail="ConnectionError")
    assert health.checks["hanging"] == Check(
        ok=False, detail="no answer within 0.01 s", critical=False
    )
    assert not health.is_ready
