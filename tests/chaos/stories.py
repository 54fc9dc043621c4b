"""Which of many stories, that differ in where a fault strikes, are replayed every time."""

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(names: Iterable[str], *, every: int) -> list[Any]:
    """Leave to `make test-all` most stories that differ only in the call that a fault strikes.

    Args:
        names: of all stories.
        every: so many stories, the tests get one of those.
    """
    return [
        pytest.param(name, marks=pytest.mark.long) if "_call_" in name and place % every else name
        for place, name in enumerate(names)
    ]
