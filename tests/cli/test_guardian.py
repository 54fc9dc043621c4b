"""What is guarded goes when everybody who writes there has gone, and not before."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.guardian import Guardian

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0  # only a hanging test takes that long

OWNER = """
import os, signal, subprocess, sys
from pathlib import Path
from cli.guardian import Guardian

with Guardian() as guardian:
    folder = guardian.folder("guarded-")
    other = Path(sys.argv[1], "other")
    other.mkdir()
    guardian.guard(other)
    writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(guardian.fd,))
    print(guardian._process.pid, writer.pid, flush=True)
    signal.pause()
"""


def test_a_folder_is_there_for_its_owner_alone_and_then_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Guardian() as guardian:
        folder = guardian.folder("guarded-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "file").touch()
        guardian.guard(tmp_path / "never-made")
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), Guardian() as guardian:
        (guardian.folder("guarded-") / "absent").unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd_open")
def test_the_death_of_the_owner_is_not_enough_while_somebody_writes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    ) as owner:
        assert owner.stdout is not None
        guardian, writer = map(int, owner.stdout.readline().split())
        descriptor = os.pidfd_open(guardian)
        writes = os.pidfd_open(writer)
        signal.pidfd_send_signal(writes, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        assert len(list(tmp_path.iterdir())) == 2
        signal.pidfd_send_signal(writes, signal.SIGKILL)
        assert select.select([descriptor], [], [], DEADLINE_S)[0]  # it has ended
        assert list(tmp_path.iterdir()) == []
