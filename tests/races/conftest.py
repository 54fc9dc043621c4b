"""Threads and tasks take turns far more often here than anywhere else."""

import sys
from collections.abc import Iterator
from typing import Final

import pytest

_SWITCH_INTERVAL_S: Final = 1e-6


@pytest.fixture(autouse=True, scope="package")
def _restless() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    yield
    sys.setswitchinterval(before)
