"""Fixtures: a scripted server on the loopback interface and time that does not pass."""

from collections.abc import AsyncIterator

import pytest

from client.runtime import Runtime
from tests.client.bench import Bench
from tests.client.federation import FakeTime, ScriptedFederation, Served, serve


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def runtime(fake_time: FakeTime) -> Runtime:
    return Runtime(clock=fake_time.clock, sleep=fake_time.sleep)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server = await serve(ScriptedFederation())
    yield server
    await server.stop()


@pytest.fixture
async def bench(served: Served, fake_time: FakeTime) -> AsyncIterator[Bench]:
    made = Bench(served, fake_time)
    yield made
    await made.close()
