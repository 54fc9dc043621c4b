import os
import time

import psutil
import pytest

from benchmarks.harness.processes import (
    ServerProcess,
    TalkingProcess,
    free_address,
    peak_resident_bytes,
    process_cpu_s,
    watched_memory,
)

MB = 1 << 20


@pytest.mark.process
@pytest.mark.slow
def test_a_server_is_ready_when_it_says_so_and_ends_with_the_block() -> None:
    arguments = ("--address", free_address(), "--batch", "1")
    with ServerProcess("benchmarks.service.echo_server", arguments) as server:
        assert [event["event"] for event in server.events()] == ["serving"]
        assert server.children() == {}
        process = psutil.Process(server.pid)
    assert not process.is_running()
    assert server.process.returncode == 0


@pytest.mark.process
@pytest.mark.slow
def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"echo_server did not serve \(status 2\).*--address"):
        ServerProcess("benchmarks.service.echo_server")


@pytest.mark.process
@pytest.mark.slow
def test_a_process_that_ends_early_has_nothing_to_say() -> None:
    with (
        TalkingProcess("benchmarks.service.echo_server") as process,
        pytest.raises(RuntimeError, match="ended early"),
    ):
        process.hear()


def test_memory_is_watched_for_as_long_as_the_block() -> None:
    with watched_memory(lambda: [os.getpid()]) as memory:
        deadline = time.monotonic() + 30
        while not memory.peak_bytes and time.monotonic() < deadline:
            pass
    assert MB < memory.peak_bytes <= 2 * peak_resident_bytes(os.getpid())


def test_processor_time_is_counted_in_nanoseconds() -> None:
    before, own = process_cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.003:
        pass
    assert 0.002 < process_cpu_s(os.getpid()) - before < 1
