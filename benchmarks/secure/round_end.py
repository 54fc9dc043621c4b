"""What happens once a round: opening the checks, deciding, opening the sum."""

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np

from aggregators.rows.dense_rows import as_rows
from aggregators.shared_selection import select
from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.cpu import best_of
from benchmarks.harness.figures import NO_TARGET, Figures, Target, judged, rounded
from benchmarks.secure.parties import (
    HOLDERS,
    THRESHOLD,
    Holder,
    Parties,
    Shape,
    distribute,
    flip_coin,
    holders_of,
    random_update,
)
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import judge

MAX_OPEN_NS: Final = 10.0
"""Of each element of a sum."""
MAX_CHECK_RATIO: Final = 10.0
"""Of the slowest holder's checks and decision, to exact distances of plain updates."""

_SET_SHA256: Final = bytes(32)


def open_sum(repeats: int, *, dim: int) -> list[Figures]:
    """Give rows for opening a sum: from as few shares as open it, and from all."""
    parties = Parties.meet()
    params = parties.round_of(Shape(format="shamir-seeded", checks="norm", dim=dim, clients=100))
    holders = holders_of(parties, params)
    distribute(parties, params, holders, [random_update(dim, seed=dim)])
    by_holder = {holder.index: holder.sums([[0]]) for holder in holders}
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


def open_distances(
    repeats: int, *, share_format: str, members: int, dim: int, distinct: int
) -> list[Figures]:
    """Give rows for opening and judging distances.

    Args:
        repeats: of which the fastest counts.
        share_format: of the shares.
        members, dim: updates whose distances are opened, and their elements.
        distinct: updates that are really shared; they stand in the set again and again, so that
            a hundred of a million elements take gigabytes less.
    """
    parties = Parties.meet()
    shape = Shape(format=share_format, checks="distances", dim=dim, clients=members)
    params = parties.round_of(shape)
    coin = flip_coin(parties, params, _SET_SHA256)
    holders = holders_of(parties, params)
    updates = [random_update(dim, seed=number) for number in range(distinct)]
    distribute(parties, params, holders, updates)
    numbers = [number % distinct for number in range(members)]
    rows = np.stack([updates[number] for number in numbers])

    def openings(holder: Holder) -> OpeningValues:
        vectors = [holder.vectors[number] for number in numbers]
        return holder.openings(coin, _SET_SHA256, vectors)

    opened = {holder.index: openings(holder) for holder in holders}
    verdict = judge(params, coin, members, opened)
    best = best_of(
        {
            "plain": lambda: as_rows(rows).gram(),
            # One expands a seed, the other opens a body.
            "first": lambda: openings(holders[0]),
            "last": lambda: openings(holders[-1]),
            "judge": lambda: judge(params, coin, members, opened),
            "select": lambda: select(params, coin, verdict, set_sha256=_SET_SHA256),
        },
        repeats=repeats,
    )
    return _distance_rows(best, share_format, size=(members, dim))


def _distance_rows(
    best: Mapping[str, float], share_format: str, *, size: tuple[int, int]
) -> list[Figures]:
    seconds = {
        "a holder opens the checks": max(best["first"], best["last"]),
        "judge": best["judge"],
        "select": best["select"],
    }
    seconds["all three"] = sum(seconds.values())
    plain_s = best["plain"]
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


def _figures(what: str, *, seconds: float, size: tuple[int, int], plain_s: float | None) -> Figures:
    members, dim = size
    return {
        "what": what,
        "members": members,
        "dim": dim,
        "cpu_ms": rounded(1e3 * seconds),
        "plain_distances_ms": NO_TARGET if plain_s is None else rounded(1e3 * plain_s),
        "ratio": NO_TARGET if plain_s is None else rounded(seconds / plain_s),
    }


BENCHMARK: Final = Benchmark(
    cases=[
        *(
            Case(name=f"sum of {dim:,}", full=partial(open_sum, dim=dim), quick=quick)
            for dim, quick in (
                (1_000_000, partial(open_sum, dim=1_000)),
                (10_000_000, None),
            )
        ),
        *(
            Case(
                name=f"distances, {name}",
                full=partial(
                    open_distances, share_format=name, members=100, dim=1_000_000, distinct=20
                ),
                quick=partial(open_distances, share_format=name, members=10, dim=1_000, distinct=3),
            )
            for name in ("shamir-seeded", "cnf-seeded")
        ),
    ],
    repeats=3,
)
