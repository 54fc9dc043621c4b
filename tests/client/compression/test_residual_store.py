"""What is kept of a device's updates, in two phases, and what becomes of damage."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.compression.residual_store import ResidualStore
from client.config import ClientConfig
from client.errors import ClientConfigError
from client.state.private_files import PrivateFolder, PrivateMemory
from client.transport.messages import SubmissionKey
from updates.error_feedback import Residual

TASK, DEVICE = "digits", "device-1"
DIM = 5
CURRENT = f"residual-{TASK}.{DEVICE}"


def key(number: int = 1, device_id: str = DEVICE) -> SubmissionKey:
    return SubmissionKey(
        task=TASK,
        round=number,
        device_id=device_id,
        submission_id=f"s-{number}",
        payload_digest=bytes([number]) * 16,
    )


def residual(number: int = 1) -> Residual:
    return Residual(vector=np.full(DIM, number, dtype=np.float32), round=number)


def open_store(folder: Path, device_id: str = DEVICE) -> ResidualStore:
    return ResidualStore(PrivateFolder(folder), task=TASK, device_id=device_id)


def kept(store: ResidualStore) -> NDArray[np.float32] | None:
    current = store.current(dim=DIM)
    return None if current is None else current.vector


def filled(folder: Path) -> ResidualStore:
    """A store with 1 as current and 2 as pending."""
    store = open_store(folder)
    store.begin(key(1), residual(1))
    store.commit()
    store.begin(key(2), residual(2))
    return store


def test_a_new_store_has_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.pending() is None
    assert store.current(dim=DIM) is None
    assert store.notices() == []


def test_what_is_begun_is_pending_and_not_current(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.pending() == key(2)
    np.testing.assert_array_equal(kept(store), np.ones(DIM, np.float32))


@pytest.mark.parametrize(("settle", "value"), [("commit", 2), ("drop", 1)])
def test_pending_becomes_current_or_is_dropped(tmp_path: Path, settle: str, value: int) -> None:
    filled(tmp_path)
    store = open_store(tmp_path)  # after a restart
    getattr(store, settle)()
    for opened in (store, open_store(tmp_path)):
        assert opened.pending() is None
        current = opened.current(dim=DIM)
        assert current is not None
        assert current.round == value
        np.testing.assert_array_equal(current.vector, np.full(DIM, value, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == [CURRENT]


def test_settling_nothing_changes_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.drop()
    store.drop()
    store.commit()
    np.testing.assert_array_equal(kept(store), np.ones(DIM, np.float32))


def test_devices_share_a_folder(tmp_path: Path) -> None:
    filled(tmp_path)
    other = open_store(tmp_path, "device-2")
    assert (other.pending(), kept(other)) == (None, None)
    other.forget()
    assert open_store(tmp_path).pending() == key(2)


@pytest.mark.parametrize("suffix", [".pending", ".tmp", "~pending", "~tmp"])
def test_no_device_is_named_like_a_file_of_another(tmp_path: Path, suffix: str) -> None:
    device_id = DEVICE + suffix
    if device_id.endswith(("~pending", "~tmp")):
        with pytest.raises(ClientConfigError):
            ClientConfig(servers=("s:1",), task=TASK, device_id=device_id, insecure=True)
        return
    other = open_store(tmp_path, device_id)
    other.begin(key(1, device_id), residual(1))
    other.commit()
    store = filled(tmp_path)
    assert store.pending() == key(2)
    assert store.notices() == []
    np.testing.assert_array_equal(kept(other), np.ones(DIM, np.float32))


def test_forgetting_leaves_no_file(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / f"{CURRENT}~pending~tmp").write_bytes(b"of a crash")
    store.forget()
    assert list(tmp_path.iterdir()) == []
    assert (store.pending(), kept(store)) == (None, None)


@pytest.mark.parametrize("suffix", ["", "~pending"])
@pytest.mark.parametrize("cut", [0, 3, 40, 200, -1])
def test_a_file_cut_short_resets_everything_and_says_so(
    tmp_path: Path, suffix: str, cut: int
) -> None:
    filled(tmp_path)
    path = tmp_path / (CURRENT + suffix)
    path.write_bytes(path.read_bytes()[:cut])
    store = open_store(tmp_path)
    if store.pending() is not None:
        (store.commit if suffix else store.drop)()
    assert store.current(dim=DIM) is None
    assert list(tmp_path.iterdir()) == []
    (notice,) = store.notices()
    assert "residual" in notice
    assert store.notices() == []


def test_a_whole_pending_file_replaces_a_damaged_one(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / CURRENT).write_bytes(b"damaged")
    store = open_store(tmp_path)
    # What the damaged one held was part of the update that was taken.
    store.commit()
    np.testing.assert_array_equal(kept(store), np.full(DIM, 2, np.float32))
    assert store.notices() == []


def test_every_flipped_byte_is_noticed() -> None:
    files = PrivateMemory()
    store = ResidualStore(files, task=TASK, device_id=DEVICE)
    store.begin(key(1), residual(1))
    store.commit()
    whole = files.read(CURRENT)
    assert whole is not None
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        files.write(CURRENT, bytes(damaged))
        assert store.current(dim=DIM) is None
        assert len(store.notices()) == 1
        assert files.read(CURRENT) is None


def test_a_residual_of_another_model_is_not_used(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.commit()
    assert store.current(dim=DIM + 1) is None
    (notice,) = store.notices()
    assert "dim=6" in notice


def test_a_file_of_another_device_is_not_used(tmp_path: Path) -> None:
    filled(tmp_path).commit()
    (tmp_path / CURRENT).rename(tmp_path / f"residual-{TASK}.device-2")
    store = open_store(tmp_path, "device-2")
    assert kept(store) is None
    (notice,) = store.notices()
    assert "device-1" in notice


def test_what_cannot_be_read_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)

    def fail(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert store.pending() is None
    (notice,) = store.notices()
    assert "Permission denied" in notice
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_moves_the_store_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrivateFolder, "write", full)
    store.drop()
    store.begin(key(3), residual(3))
    assert list(tmp_path.iterdir()) == []
    (notice,) = store.notices()
    assert "No space" in notice
    assert store.pending() == key(3)
    store.commit()
    np.testing.assert_array_equal(kept(store), np.full(DIM, 3, np.float32))


def test_a_folder_that_cannot_be_changed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("write", "remove"):
        monkeypatch.setattr(PrivateFolder, name, refuse)
    # Going on would count what the files hold a second time after a restart.
    with pytest.raises(ClientConfigError, match="Read-only"):
        store.begin(key(3), residual(3))


def test_a_store_in_memory_keeps_what_one_on_disk_does() -> None:
    store = ResidualStore(PrivateMemory(), task=TASK, device_id=DEVICE)
    store.begin(key(1), residual(1))
    assert store.pending() == key(1)
    store.commit()
    assert store.pending() is None
    np.testing.assert_array_equal(kept(store), np.ones(DIM, np.float32))
