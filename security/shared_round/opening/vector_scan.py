"""One pass over a holder's share of a device's vector: all that the checks need of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from security.errors import SharingError
from security.secret_sharing.arithmetic import dot
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import Words
from security.secret_sharing.sketch import Sketch
from security.shared_round.opening.coins import Coin
from security.shared_round.terms.bounds import SKETCH_COPIES
from security.shared_round.terms.parameters import RoundParameters

_SKETCH_USE: Final = "sketch"
_CONSISTENCY_USE: Final = "consistency"
_KEPT_WORDS: Final = 1 << 22  # 32 MiB of random factors; those of longer vectors are made anew


class ShareVector(Protocol):
    """A holder's share of one device's vector."""

    def chunks(self) -> Iterator[tuple[int, Words]]:
        """Give the whole vector, extras included, in order: index of the first word, words.

        The words are the Shamir share times the format's `share_scale`. A chunk is valid until the
        next is asked for.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScannedShare:
    """What one pass over a share gives.

    Attributes:
        consistency: <r, vector> for r of the coin; 0 in rounds without the mask.
        square: <x, x> of the update's words.
        sketches: (copies, sketch_dim).
        extras: (num_extras,).
    """

    consistency: int
    square: int
    sketches: Words
    extras: Words


class VectorScan:
    """Scans the shares of a round's members under the coin of their frozen set.

    Args:
        params: a round with checks.
        coin: of the frozen set.
        is_blame: only the sketches and extras are needed.
    """

    def __init__(self, params: RoundParameters, coin: Coin, *, is_blame: bool = False) -> None:
        """Prepare the sketch and the random factors."""
        self._params = params
        self._is_blame = is_blame
        self._sketch = Sketch(
            coin.key(_SKETCH_USE),
            field=params.field,
            dim=params.dim,
            sketch_dim=params.sketch_dim,
            copies=SKETCH_COPIES,
        )
        self._factors: _Factors | None = None
        if params.has_consistency_mask and not is_blame:
            key = coin.key(_CONSISTENCY_USE)
            self._factors = _Factors(Expansion(key, params.field, params.length))

    def scan(self, vector: ShareVector) -> ScannedShare:
        """Read a share once.

        Raises:
            SharingError: if it does not have exactly `params.length` words in order.

        Cost: two inner products and two signed additions a word.
        """
        field, dim = self._params.field, self._params.dim
        sketches = self._sketch.empty()
        extras = np.empty(self._params.num_extras, dtype=np.uint64)
        consistency = square = done = 0
        for start, words in vector.chunks():
            self._check_chunk(done, start, len(words))
            done += len(words)
            update, rest = words[: max(dim - start, 0)], words[max(dim - start, 0) :]
            self._sketch.add(sketches, start, update)
            if len(rest):
                extras[done - len(rest) - dim : done - dim] = rest
            if not self._is_blame:
                square += dot(field, update, update)
            if self._factors is not None:
                consistency += dot(field, self._factors.words(start, len(words)), words)
        if done != self._params.length:
            message = f"a share must have {self._params.length} words, got {done}"
            raise SharingError(message)
        return ScannedShare(
            consistency=field.reduce(consistency),
            square=field.reduce(square),
            sketches=sketches,
            extras=extras,
        )

    def _check_chunk(self, done: int, start: int, count: int) -> None:
        if start != done or done + count > self._params.length:
            message = f"chunk of {count} words at {start} must begin at {done} and end at most at"
            message += f" {self._params.length}"
            raise SharingError(message)


class _Factors:
    """Random factors, kept for the next member where they are few."""

    def __init__(self, expansion: Expansion) -> None:
        self._expansion = expansion
        self._kept: dict[tuple[int, int], Words] = {}

    def words(self, start: int, count: int) -> Words:
        if self._expansion.length > _KEPT_WORDS:
            return self._expansion.words(start, count)
        key = (start, count)
        if key not in self._kept:
            self._kept[key] = self._expansion.words(start, count)
        return self._kept[key]
