"""The course of rounds as an observer sees it, who may miss steps in between."""

from typing import Final

from server.round.state import ALLOWED, Phase, Round
from tests.chaos.promise import require


class History:
    """Sees that rounds follow one another and go on only as the table of phases allows."""

    def __init__(self) -> None:
        self.last: Round | None = None

    def observe(self, now: Round | None) -> None:
        """Compare what is stored now with what was stored before."""
        last, self.last = self.last, now
        if last is None:
            return
        if now is None:
            require(False, f"{last} disappeared")
        elif now.number != last.number:
            require(now.number > last.number, f"after round {last.number} came {now.number}")
        else:
            moved = now.version > last.version and now.phase in _REACHABLE[last.phase]
            require(now == last or moved, f"{last} became {now}")


def _reachable() -> dict[Phase, frozenset[Phase]]:
    found: dict[Phase, frozenset[Phase]] = {}
    for phase in reversed(Phase):  # phases are declared in the order they can follow
        after = frozenset[Phase]().union(*ALLOWED[phase].values())
        found[phase] = after.union(*(found[one] for one in after if one is not phase))
    return found


_REACHABLE: Final = _reachable()
