"""How much memory a call needs beside what it is given and what it returns."""

import contextlib
import ctypes
import time
from pathlib import Path
from typing import Final

from benchmarks.kernels.ways import Answer, Call

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"


def run_measured(call: Call) -> tuple[Answer, float, int | None]:
    """Call once, watching the resident memory of the process.

    Returns:
        The answer, the seconds it took, and by how many bytes the peak was above what the process
        held before and the answer; None where the system does not tell.
    """
    _give_back_free_memory()
    before = _resident_bytes("VmRSS") if _reset_peak() else None
    start = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - start
    if before is None:
        return answer, seconds, None
    return answer, seconds, max(0, _resident_bytes("VmHWM") - before - answer.nbytes)


def _reset_peak() -> bool:
    """Let the peak start from what is resident now; Linux only."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _resident_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    return 0


def _give_back_free_memory() -> None:
    # What the allocator keeps for later would be used again without raising the peak.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
