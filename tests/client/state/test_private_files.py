"""Files that are there as a whole or not at all, and for their owner only."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from client.state.private_files import PrivateFolder, PrivateMemory, PrivateStore


class Crash(BaseException):
    """Ends the process, as far as the code under test can tell."""


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> PrivateStore:
    return PrivateFolder(tmp_path / "state") if request.param == "folder" else PrivateMemory()


def test_what_is_written_is_read_until_it_is_replaced_or_removed(files: PrivateStore) -> None:
    assert files.read("a") is None
    files.write("a", b"one")
    files.write("b", b"other")
    files.write("a", b"two")
    assert (files.read("a"), files.read("b")) == (b"two", b"other")
    files.remove("a")
    files.remove("a")
    assert (files.read("a"), files.read("b")) == (None, b"other")


def test_renaming_replaces_the_target_and_does_nothing_without_a_source(
    files: PrivateStore,
) -> None:
    files.write("a", b"one")
    files.write("b", b"other")
    files.rename("a", "b")
    assert (files.read("a"), files.read("b")) == (None, b"one")
    files.rename("a", "b")
    assert files.read("b") == b"one"


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    files = PrivateFolder(tmp_path / "deep" / "state")
    old = os.umask(0)
    try:
        files.write("a", b"secret")
    finally:
        os.umask(old)
    folder = tmp_path / "deep" / "state"
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    files = PrivateFolder(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "a~tmp").symlink_to(victim)
    files.write("a", b"secret")
    assert victim.read_bytes() == b"untouched"
    assert files.read("a") == b"secret"


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = PrivateFolder(tmp_path)
    files.write("a", b"old")

    def crash(*_: object, **__: object) -> None:
        raise Crash

    owner: object = os if name == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(Crash):
            files.write("a", b"new")
    assert files.read("a") == b"old"
    files.write("a", b"new")
    assert files.read("a") == b"new"
    files.remove("a")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PrivateFolder(tmp_path)
    files.write("a", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            files.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert files.read("a") == b"old"


CALLS: list[tuple[str, Callable[[PrivateFolder], None]]] = [
    ("write", lambda files: files.write("a", b"new")),
    ("rename", lambda files: files.rename("b", "a")),
    ("remove", lambda files: files.remove("a")),
]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_every_change_of_a_name_is_made_durable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: Callable[[PrivateFolder], None],
) -> None:
    del name
    files = PrivateFolder(tmp_path)
    files.write("a", b"old")
    files.write("b", b"other")
    synced: list[bool] = []
    really = os.fsync

    def fsync(file: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(file).st_mode))
        really(file)

    monkeypatch.setattr(os, "fsync", fsync)
    call(files)
    assert synced[-1]
