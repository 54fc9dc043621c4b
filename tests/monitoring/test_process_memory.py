import mmap
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from monitoring import process_memory
from monitoring.process_memory import PeakMemory, proportional_bytes

MB = 1 << 20


def test_the_peak_is_the_largest_sum() -> None:
    pids = [os.getpid()]
    memory = PeakMemory(lambda: pids)
    memory.sample()
    alone = memory.peak_bytes
    assert 0.2 < alone / psutil.Process().memory_info().rss < 1.1  # libraries are shared
    pids.append(os.getpid())
    memory.sample()
    both = memory.peak_bytes
    assert both > 1.5 * alone
    pids.clear()
    memory.sample()
    assert memory.peak_bytes == both


def test_pages_that_two_processes_share_count_half_for_each() -> None:
    pages = mmap.mmap(-1, 64 * MB)
    pages.write(b"x" * len(pages))
    alone = proportional_bytes(os.getpid())
    if alone == process_memory._resident_bytes(os.getpid()):
        pytest.skip("this system does not tell")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        pages[:: mmap.PAGESIZE]  # it maps them too
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        while proportional_bytes(child) < 32 * MB:
            pass
        assert alone - proportional_bytes(os.getpid()) > 28 * MB
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_a_process_that_has_ended_takes_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert proportional_bytes(process.pid) == 0  # nobody has waited for it yet
    assert proportional_bytes(process.pid) == 0


def test_where_the_system_does_not_tell_all_resident_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "_PROC", tmp_path)
    found = proportional_bytes(os.getpid())
    assert found == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
