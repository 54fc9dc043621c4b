"""Demonstrations whose processes die, or that are ended from outside; the kills are real."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cli.exit_codes import ExitCode

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open and /proc"),
]

ROOT = Path(__file__).parents[3]
DEADLINE_S = 100.0  # only a hanging test takes that long
MANY = ("--devices", "3", "--rounds", "500")
SHARED = (*MANY, "--mode", "shared", "--holders", "3", "--threshold", "2")

# Names by a part of the command line.
STORE, TEMPLATE, FLEET = "valkey", "fork_server", "simulation.fleet.forking"
COORDINATOR, HOLDER = "coordinator-", "holder-"


class Run:
    """A demonstration in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.text = ""

    def until(self, pattern: str) -> str:
        """Read what it says up to a line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if re.search(pattern, line):
                return line
        raise AssertionError(self.text)

    def children(self, part: str = "") -> list[psutil.Process]:
        """The processes of it whose command line has a part."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if part in " ".join(one.cmdline())]

    def ends(self) -> str:
        """Everything it said, when it has ended."""
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        self.text += rest
        return self.text


@contextmanager
def demo(folder: Path, *arguments: str, **environment: str) -> Iterator[Run]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Run(process)
    finally:
        process.kill()
        process.communicate()


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert alive == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
    ],
    ids=lambda n: n.name,
)
def test_a_signal_ends_everything_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with demo(tmp_path, *MANY) as run:
        run.until(r"^\[ROUND 1/")
        children = run.children()
        # A store, a template, two coordinators, a fleet of three and its parent, a guardian.
        assert len(children) >= 9
        if number is signal.SIGKILL:
            run.process.kill()
        else:
            # As a terminal does: the whole group gets it.
            os.killpg(run.process.pid, number)
        text = run.ends()
        if number is not signal.SIGKILL:
            assert run.process.returncode == ExitCode.INTERRUPTED
            assert text.splitlines()[-1] == "fedagg: interrupted"
        assert_ended(children)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_at_any_time_of_the_start_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path, *MANY) as run:
        run.until("coordinators, 1 store")
        children = run.children()
        run.process.kill()
        assert_ended(children)
    assert list(tmp_path.iterdir()) == []


def test_a_server_process_that_dies_is_told_and_started_again(tmp_path: Path) -> None:
    with demo(tmp_path, "--devices", "3", "--rounds", "500") as run:
        run.until(r"^\[ROUND 1/")
        for part, name in (
            (STORE, "store"),
            (TEMPLATE, "template"),
            (COORDINATOR, "coordinator-[12]"),
        ):
            run.children(part)[0].kill()
            line = run.until("was killed by SIGKILL")
            assert re.match(
                rf"{name} was killed by SIGKILL: .*; it is started again, its log is", line
            )
            assert Path(line.split()[-1]).is_file()
            number = int(re.findall(r"^\[ROUND (\d+)/", run.text, re.MULTILINE)[-1])
            run.until(rf"^\[ROUND {number + 2}/")


def test_a_share_holder_that_dies_is_told_and_started_again(tmp_path: Path) -> None:
    with demo(tmp_path, *SHARED) as run:
        run.until(r"^\[ROUND 1/")
        run.children(HOLDER)[0].kill()
        assert re.match("holder-[123] was killed by SIGKILL", run.until("was killed by SIGKILL"))
        run.until(r"^\[ROUND")


def logs_of(text: str, folder: Path) -> Path:
    """Where the logs of a failed demonstration are; nothing else is left."""
    kept = Path(text.rsplit("logs are in ", maxsplit=1)[-1].split(maxsplit=1)[0])
    assert list(folder.iterdir()) == [kept]
    assert (kept / "logs" / "coordinator-1.log").is_file()
    return kept


def test_a_device_that_dies_ends_it_with_its_name(tmp_path: Path) -> None:
    with demo(tmp_path, *MANY) as run:
        run.until(r"^\[ROUND 1/")
        (fleet,) = run.children(FLEET)[:1]
        fleet.children()[1].kill()
        text = run.ends()
        assert run.process.returncode == ExitCode.FAILURE
        assert "fedagg: device-0001 was killed by SIGKILL: the last it did was" in text
    kept = logs_of(text, tmp_path)
    assert (kept / "devices" / "device-0001.jsonl").is_file()


def test_a_fleet_that_dies_ends_it(tmp_path: Path) -> None:
    with demo(tmp_path, *MANY) as run:
        run.until(r"^\[ROUND 1/")
        run.children(FLEET)[0].kill()
        text = run.ends()
        assert run.process.returncode == ExitCode.FAILURE
        assert "the fleet failed: its supervisor ended with status -9" in text
    logs_of(text, tmp_path)


# Loaded by every Python process of a demonstration; it breaks those that it is told to.
SABOTAGE = """
import os, sys
def fail(*_):
    sys.stderr.write("sabotaged on purpose\\n")
    os._exit(1)

part, command = os.environ.get("SABOTAGED", "-"), " ".join(sys.orig_argv)
if part in command:
    fail()
if part == "forks" and "fork_server" in command:
    os.environ.update = fail  # the last that is done for a process before its program runs
"""


@pytest.mark.parametrize(
    ("part", "arguments", "told"),
    [
        (TEMPLATE, MANY, "template ended with status 1 before it was ready"),
        ("forks", MANY, "coordinator-[12] ended with status 1 before it was ready"),
        ("forks", SHARED, "holder-[123] ended with status 1 before it was ready"),
        (
            "simulation.fleet.forking",
            MANY,
            "the fleet failed: its supervisor ended with status 1",
        ),
    ],
    ids=["template", "coordinator", "holder", "fleet"],
)
def test_a_process_that_never_starts_is_told_by_its_own_last_line(
    tmp_path: Path, part: str, arguments: tuple[str, ...], told: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SABOTAGE)
    folder = tmp_path / "tmp"
    folder.mkdir()
    with demo(folder, *arguments, PYTHONPATH=str(site), SABOTAGED=part) as run:
        text = run.ends()
        assert run.process.returncode == ExitCode.FAILURE
        assert re.search(rf"fedagg: {told}: sabotaged on purpose; logs are in ", text), text
    kept = Path(text.split("logs are in ")[-1].split()[0])
    assert list(folder.iterdir()) == [kept]


def test_a_store_that_never_starts_is_told_by_its_own_last_line(tmp_path: Path) -> None:
    program = (
        "import sys; "
        "from server.storage import embedded; "
        "embedded.EmbeddedStore._config = lambda self: 'no-such-setting yes\\n'; "
        "from cli.main import main; sys.argv[1:] = ['demo', '--devices', '3']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == ExitCode.FAILURE
    assert "store ended with status 1 before it was ready: " in done.stderr
    assert "no-such-setting" in done.stderr or "Bad directive" in done.stderr


@pytest.mark.long  # nothing is said for ten seconds
def test_a_slow_start_is_waited_for(tmp_path: Path) -> None:
    """A template that is stopped while it loads: nothing gives up, and that is told."""
    with demo(tmp_path, "--devices", "3", "--rounds", "1") as run:
        run.until("coordinators, 1 store")
        assert run.process.stdout is not None
        stopped: list[psutil.Process] = []
        while not stopped:
            stopped = run.children(TEMPLATE)
            select.select([run.process.stdout], [], [], 0.05)
        for one in stopped:
            one.suspend()
        line = run.until("still waiting")
        assert re.search(r"still waiting after 1\d s: template", line)
        for one in stopped:
            one.resume()
        assert "3 updates acknowledged, 0 lost" in run.ends()
        assert run.process.returncode == ExitCode.OK
