"""A process that ends at once has written what it wrote, and has the status that it asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(status: str) -> "subprocess.CompletedProcess[str]":
    program = (
        "import atexit, sys; from server.processes.process_end import end_process; "
        "atexit.register(print, 'too late'); sys.stdout.write('written'); "
        f"end_process({status})"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [("0", 0, ""), ("None", 0, ""), ("3", 3, ""), ("'why it failed'", 1, "why it failed\n")],
)
def test_output_is_flushed_and_the_status_is_that_of_exit(
    status: str, code: int, text: str
) -> None:
    done = run(status)
    assert (done.returncode, done.stdout, done.stderr) == (code, "written", text)


def test_output_that_nobody_takes_is_a_failure() -> None:
    program = (
        "import os; from server.processes.process_end import end_process; "
        "r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('lost'); end_process(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 1
