"""How a library can compute a rule; what every peer module lists."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float32]
Answer: TypeAlias = NDArray[np.floating]
Call: TypeAlias = Callable[[], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way in which a library computes a rule.

    Attributes:
        name: what is called, for people.
        bind: from the rows, (n, d), and f to the call that is timed. What a caller of that
            library would have at hand anyway, such as a list of arrays, is made here.
        rows_power: the time grows as d n**rows_power at most.
        copies: memory it needs, in sizes of the rows.
        copies_per_row: n times as many sizes of the rows come on top.
        note: where its definition is not ours.
    """

    name: str
    bind: Callable[[Matrix, int], Call]
    rows_power: int = 1
    copies: float = 3.0
    copies_per_row: float = 0.0
    note: str = ""

    def memory_bytes(self, matrix: Matrix) -> float:
        """Estimate how much memory a call needs at most."""
        return (self.copies + self.copies_per_row * len(matrix)) * matrix.nbytes


Ways: TypeAlias = Mapping[str, Sequence[Way]]
"""By the name of a rule."""
