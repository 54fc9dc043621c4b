"""Threads open shares while the keys of other rounds, or of the same, are forgotten."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.holder.shares import intake
from server.holder.shares.intake import OpenedFrames
from server.holder.storage.membership import HolderSelf
from tests.races.hunting import Unlocked, attempts, together

ROUNDS = [bytes([number]) * 32 for number in range(3)]
DEVICES = [f"device-{number}" for number in range(20)]
KNOWN_KEYS = 12
ROOT = Path("/")


@pytest.fixture(autouse=True)
def _cheap_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open nothing: what is opened tells what it was opened from."""

    def open_frame(params: Any, _: object, __: object, header: Any, frame: bytes) -> Any:
        return (params.sha256, header.device_id, hashlib.sha256(frame).digest())

    monkeypatch.setattr(intake, "open_frame", open_frame)
    monkeypatch.setattr(intake, "_KNOWN_KEYS", KNOWN_KEYS)


class RestlessKeys(OrderedDict[Any, Any]):
    """Lets other threads have their turn between any two of its entries."""

    def __iter__(self) -> Iterator[Any]:
        for name in super().__iter__():
            ROOT.stat()
            yield name


def open_all(frames: OpenedFrames, sha256: bytes, faults: list[str]) -> None:
    params: Any = SimpleNamespace(sha256=sha256)
    for device in DEVICES:
        header: Any = SimpleNamespace(device_id=device)
        keys: Any = frames.open(params, header, device.encode())
        if keys != (sha256, device, hashlib.sha256(device.encode()).digest()):
            faults.append(f"{device} got the keys of {keys}")


def hunted(*, locked: bool) -> list[str]:
    """Open and forget in several threads; return what went wrong."""
    me = cast("HolderSelf", SimpleNamespace(secrets=None, index=1))
    frames = OpenedFrames(me)
    frames._keys = RestlessKeys()
    if not locked:
        frames._lock = Unlocked()  # type: ignore[assignment]  # the planted race
    faults: list[str] = []

    def forget_all() -> None:
        for _ in range(20):
            for sha256 in ROUNDS:
                frames.forget(sha256)

    raised = together(
        *(partial(open_all, frames, sha256, faults) for sha256 in ROUNDS * 2),
        forget_all,
        forget_all,
    )
    if len(frames._keys) > KNOWN_KEYS:
        faults.append(f"{len(frames._keys)} keys are kept")
    forget_all()
    if frames._keys:
        faults.append("keys are left")
    return [*faults, *map(repr, raised)]


def test_shares_are_opened_while_rounds_are_forgotten() -> None:
    assert not any(hunted(locked=True) for _ in attempts(5))


def test_a_planted_race_is_found() -> None:
    assert any(hunted(locked=False) for _ in attempts(100))
