"""What happens once a round: opening the checks, deciding, opening the sum."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregators.rows.dense_rows import as_rows
from aggregators.shared_selection import select
from benchmarks.secure import classic
from benchmarks.secure.cpu import best_of
from benchmarks.secure.figures import Figures, Target, judged, rounded
from benchmarks.secure.holders import Holder, flip_coin, holders_of
from benchmarks.secure.parties import (
    HOLDERS,
    THRESHOLD,
    Parties,
    Shape,
    device_id_of,
    random_update,
)
from security.secret_sharing import fixed_point
from security.secret_sharing.threshold import Threshold
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import Verdict, judge
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import check_structure, parse_prefix

MAX_OPEN_NS: Final = 10.0
"""Of each element of a sum."""
MAX_CHECK_RATIO: Final = 10.0
"""Of the slowest holder's checks and decision, to exact distances of plain updates."""

_SET_SHA256: Final = bytes(32)
_NO_PLAIN: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        sum_dims: elements of the sums that are opened.
        members: updates whose distances are opened.
        dim: their elements.
        distinct: updates that are really shared; they stand in the set again and again, so that
            a hundred of a million elements take gigabytes less.
        repeats: of which the fastest counts.
    """

    sum_dims: Sequence[int]
    members: int
    dim: int
    distinct: int
    repeats: int


def measure(settings: Settings) -> list[Figures]:
    """Rows for opening sums, then those for opening and judging distances."""
    parties = Parties.meet()
    sums = [
        row for dim in settings.sum_dims for row in _opening_rows(parties, dim, settings.repeats)
    ]
    return sums + [
        row
        for share_format in ("shamir-seeded", "cnf-seeded")
        for row in _distance_rows(parties, share_format, settings)
    ]


def _opening_rows(parties: Parties, dim: int, repeats: int) -> list[Figures]:
    params = parties.round_of(Shape(format="shamir-seeded", checks="norm", dim=dim, clients=100))
    update = random_update(dim, seed=dim)
    secret = fixed_point.encode(update, fraction_bits=params.fraction_bits, field=params.field)
    scheme = Threshold(threshold=THRESHOLD, holders=HOLDERS)
    shares = classic.share(params.field, scheme, secret, os.urandom)
    by_holder = {index: [words] for index, words in enumerate(shares, start=1)}
    some = {index: by_holder[index] for index in range(1, THRESHOLD + 1)}
    best = best_of(
        {
            f"open the sum, {THRESHOLD} shares": lambda: open_sums(params, some, weights=[1]),
            f"open the sum, {HOLDERS} shares": lambda: open_sums(params, by_holder, weights=[1]),
        },
        repeats=repeats,
    )
    return [
        _figures(name, seconds=seconds, size=(1, dim), plain_s=None)
        | judged(Target(name="element", figure=1e9 * seconds / dim, limit=MAX_OPEN_NS, unit="ns"))
        for name, seconds in best.items()
    ]


def _distance_rows(parties: Parties, share_format: str, settings: Settings) -> list[Figures]:
    shape = Shape(
        format=share_format, checks="distances", dim=settings.dim, clients=settings.members
    )
    params = parties.round_of(shape)
    coin = flip_coin(parties, params, _SET_SHA256)
    holders = holders_of(parties, params)
    updates = [random_update(settings.dim, seed=number) for number in range(settings.distinct)]
    _share_all(parties, params, holders, updates)
    numbers = [number % settings.distinct for number in range(settings.members)]
    rows = np.stack([updates[number] for number in numbers])

    def openings(holder: Holder) -> OpeningValues:
        vectors = [holder.vectors[number] for number in numbers]
        return holder.openings(coin, _SET_SHA256, vectors)

    opened = {holder.index: openings(holder) for holder in holders}
    verdict = judge(params, coin, settings.members, opened)
    first, last = holders[0], holders[-1]  # one expands a seed, the other opens a body
    best = best_of(
        {
            "plain": lambda: as_rows(rows).gram(),
            "first": lambda: openings(first),
            "last": lambda: openings(last),
            "judge": lambda: judge(params, coin, settings.members, opened),
            "select": lambda: _select(params, coin, verdict),
        },
        repeats=settings.repeats,
    )
    seconds = {
        "a holder opens the checks": max(best["first"], best["last"]),
        "judge": best["judge"],
        "select": best["select"],
    }
    seconds["all three"] = sum(seconds.values())
    size, plain_s = (settings.members, settings.dim), best["plain"]
    limit = Target(
        name="all three",
        figure=seconds["all three"] / plain_s,
        limit=MAX_CHECK_RATIO,
        unit="x plain",
    )
    return [
        _figures(f"{name}, {share_format}", seconds=spent, size=size, plain_s=plain_s)
        | (judged(limit) if name == limit.name else judged())
        for name, spent in seconds.items()
    ]


def _select(params: RoundParameters, coin: Coin, verdict: Verdict) -> object:
    return select(params, coin, verdict, set_sha256=_SET_SHA256)


def _share_all(
    parties: Parties,
    params: RoundParameters,
    holders: Sequence[Holder],
    updates: Sequence[np.ndarray],
) -> None:
    for number, update in enumerate(updates):
        bundle = parties.seal(params, device_id_of(number), update)[:]
        prefix, prefix_bytes = parse_prefix(bundle)
        index = check_structure(
            params,
            prefix,
            prefix_bytes=prefix_bytes,
            total_bytes=len(bundle),
            device_id=device_id_of(number),
        )
        for holder in holders:
            holder.take(prefix, index, bundle)


def _figures(what: str, *, seconds: float, size: tuple[int, int], plain_s: float | None) -> Figures:
    members, dim = size
    return {
        "what": what,
        "members": members,
        "dim": dim,
        "cpu_ms": rounded(1e3 * seconds),
        "plain_distances_ms": _NO_PLAIN if plain_s is None else rounded(1e3 * plain_s),
        "ratio": _NO_PLAIN if plain_s is None else rounded(seconds / plain_s),
    }
