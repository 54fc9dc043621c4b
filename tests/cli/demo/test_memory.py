import os
import subprocess

import psutil

from cli.demo.memory import PeakMemory


def test_the_peak_is_the_largest_sum() -> None:
    pids = [os.getpid()]
    memory = PeakMemory(lambda: pids)
    memory.sample()
    alone = memory.peak_bytes
    assert 0.5 < alone / psutil.Process().memory_info().rss < 2  # it may change between the two
    pids.append(os.getpid())
    memory.sample()
    both = memory.peak_bytes
    assert both > 1.5 * alone
    pids.clear()
    memory.sample()
    assert memory.peak_bytes == both


def test_a_process_that_has_ended_takes_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    memory = PeakMemory(lambda: [process.pid])
    memory.sample()
    assert memory.peak_bytes == 0
