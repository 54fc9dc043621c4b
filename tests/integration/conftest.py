"""Fixtures: one coordinator, with a round that waits for two devices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.service import CLOCK, Service, serving


@pytest.fixture
async def service(tmp_path: Path, redis_url: str) -> AsyncIterator[Service]:
    """A coordinator whose clock stands still; rounds of two devices, `d1` and `d2` say."""
    async with serving(tmp_path, redis_url, clock=CLOCK) as running:
        yield running


@pytest.fixture
async def collecting(service: Service) -> Service:
    """The same, with `d1` and `d2` in the cohort of round 1."""
    await service.open_round("d1", "d2")
    return service
