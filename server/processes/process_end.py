"""The end of a process that has nothing left to do."""

import os
import sys
from typing import NoReturn


def end_process(status: object) -> NoReturn:
    """End this process at once, with what it wrote written.

    Taking down an interpreter that has loaded a compiler, gRPC and a hundred other modules takes
    half a second of a core, in which the operating system would have taken everything back anyway.
    Call it where everything is closed: threads, `atexit` and destructors do not run any more.

    Args:
        status: as `sys.exit` takes it: a number, None for 0, or a text to write for 1.
    """
    code = 0 if status is None else status
    if not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1  # whoever read it is gone
    os._exit(code)
