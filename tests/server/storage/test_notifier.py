"""News over a real subscription: who is woken by what, and after the connection was lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pytest
import redis

from server.storage import notifier as notifier_module
from server.storage.keys import drive_channel, events_channel
from server.storage.notifier import News, Notifier
from server.storage.redis_client import RedisClient

DEADLINE_S: Final = 20.0


@dataclass
class Bench:
    notifier: Notifier
    store: redis.Redis

    async def listening(self) -> None:
        """Return once the subscription stands: everybody is woken then."""
        await wait(self.notifier.drivers, "a", since=0)
        await wait(self.notifier.drivers, "b", since=0)


async def wait(news: News, task: str, *, since: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await news.wait(task, timeout_s=2 * DEADLINE_S, since=since)


@pytest.fixture
async def bench(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(notifier_module, "RECONNECT_S", 0.0)
    client = RedisClient(redis_url)
    notifier = Notifier(client.redis, ["a", "b"])
    running = asyncio.ensure_future(notifier.run())
    with redis.Redis.from_url(redis_url) as store:
        yield Bench(notifier, store)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await client.close()


async def test_a_change_of_phase_is_news_for_everybody_of_the_task(bench: Bench) -> None:
    await bench.listening()
    notifier = bench.notifier
    marks = [news.mark("a") for news in (notifier.devices, notifier.drivers)]
    other = notifier.devices.mark("b")
    bench.store.publish(events_channel("a"), "collecting")
    await wait(notifier.devices, "a", since=marks[0])
    await wait(notifier.drivers, "a", since=marks[1])
    assert notifier.devices.mark("b") == other


async def test_the_goal_is_news_for_the_driver_alone(bench: Bench) -> None:
    await bench.listening()
    devices, drivers = bench.notifier.devices.mark("a"), bench.notifier.drivers.mark("a")
    bench.store.publish(drive_channel("a"), "goal")
    await wait(bench.notifier.drivers, "a", since=drivers)
    assert bench.notifier.devices.mark("a") == devices


async def test_a_lost_subscription_is_made_again_and_counts_as_news(bench: Bench) -> None:
    await bench.listening()
    mark = bench.notifier.devices.mark("a")
    bench.store.client_kill_filter(_type="pubsub")
    await wait(bench.notifier.devices, "a", since=mark)
    mark = bench.notifier.devices.mark("b")
    bench.store.publish(events_channel("b"), "published")
    await wait(bench.notifier.devices, "b", since=mark)


async def test_news_before_the_wait_is_not_missed() -> None:
    news = News()
    mark = news.mark("a")
    news.wake("a")
    await wait(news, "a", since=mark)


async def test_a_wait_ends_without_news() -> None:
    news = News()
    await news.wait("a", timeout_s=0.0, since=news.mark("a"))
    assert news.mark("a") == 0


async def test_without_tasks_there_is_nothing_to_listen_for(redis_url: str) -> None:
    client = RedisClient(redis_url)
    await asyncio.wait_for(Notifier(client.redis, []).run(), DEADLINE_S)
    await client.close()
