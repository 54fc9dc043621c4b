"""What makes a process fit to be forked, and what a fork does first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.processes.child_process import module_command, module_of
from server.processes.forking import place_fds

ROOT = Path(__file__).parents[3]


def ended(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"from server.processes.forking import *\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_thread_or_an_open_file_is_refused() -> None:
    thread = (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    told = ended(f"known = open_fds(); {thread}\nmake_forkable(known_fds=known)").stderr
    assert "NotForkableError: what was loaded has started 1 threads" in told
    file = "file = open('/etc/passwd')"
    told = ended(f"known = open_fds(); {file}; make_forkable(known_fds=known)").stderr
    assert "NotForkableError: what was loaded has opened /etc/passwd" in told
    assert ended(f"{file}; known = open_fds(); make_forkable(known_fds=known)").returncode == 0


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_code_that_was_given_back_is_found_again() -> None:
    program = """
import hashlib, numpy
numpy.linalg.inv(numpy.eye(3))
make_forkable(known_fds=open_fds())
mapped = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if "Rss" in line)
print(hashlib.sha256(b"").hexdigest(), numpy.linalg.inv(numpy.eye(3)).sum(), mapped < 60_000)
"""
    assert ended(program).stdout.split()[1:] == ["3.0", "True"]


@pytest.mark.process
def test_a_fork_whose_parent_is_another_one_ends() -> None:
    assert ended("begin_fork(parent=os.getpid()); print('here')").returncode == 1
    assert ended("begin_fork(parent=os.getppid()); print('here')").stdout == "here\n"


def test_files_may_swap_their_numbers() -> None:
    (first, first_end), (second, second_end) = os.pipe(), os.pipe()
    os.write(first_end, b"first")
    os.write(second_end, b"second")
    # As received: other descriptors of the same files.
    place_fds([os.dup(first), os.dup(second)], [second, first])
    assert os.read(second, 8) == b"first"
    assert os.read(first, 8) == b"second"
    for fd in (first, first_end, second, second_end):
        os.close(fd)


def test_a_command_of_a_module_can_be_taken_apart() -> None:
    assert module_of(module_command("a.b", "--c", "d")) == ("a.b", ("--c", "d"))
    with pytest.raises(ValueError, match="runs no module"):
        module_of(("/bin/true", "-P", "-m", "x"))
