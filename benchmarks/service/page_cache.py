"""What the machine asks for a page of memory that was not used lately.

A virtual machine may hand memory it does not use back to its host (free page reporting); taking it
again then costs several times the copy that follows. A file written into such memory is slow for a
reason that has nothing to do with who writes it.

`python -m benchmarks.service.page_cache` tells the cost of writing 4 MiB files right after others
of that size were deleted, and some seconds later.
"""

import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Final

FILE_BYTES: Final = 4 << 20
CHUNK: Final = bytes(1 << 20)
FILES: Final = 200
PAUSE_S: Final = 6.0


def warm(folder: Path, num_bytes: int) -> None:
    """Touch as much memory as files of `num_bytes` will take, and give it back."""
    path = folder / "warm"
    with path.open("wb", buffering=0) as file:
        for _ in range(0, num_bytes, len(CHUNK)):
            file.write(CHUNK)
    path.unlink()


def write_cpu_ms(folder: Path) -> float:
    """CPU time of writing one of many files, milliseconds."""
    before = _cpu_s()
    for number in range(FILES):
        with (folder / str(number)).open("wb", buffering=0) as file:
            for _ in range(0, FILE_BYTES, len(CHUNK)):
                file.write(CHUNK)
    spent = _cpu_s() - before
    for number in range(FILES):
        (folder / str(number)).unlink()
    return 1e3 * spent / FILES


def main() -> None:
    """Print both figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cpu_ms(folder)
        at_once = write_cpu_ms(folder)
        time.sleep(PAUSE_S)
        later = write_cpu_ms(folder)
    text = f"4 MiB file: {at_once:.2f} ms into warm memory, {later:.2f} ms after {PAUSE_S:g} s\n"
    os.write(1, text.encode())


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
