"""Which holders' openings a verdict rests on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Never

from security.errors import EvidenceInsufficientError
from security.shared_round.opening.opened_checks import OpenedChecks
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.terms.parameters import RoundParameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrustedOpenings:
    """What opens without holders that cannot be relied upon.

    Attributes:
        opened: the values.
        with_products: whether norms and distances are among them.
        dropped: holders that lied and were left out.
        disputed: holders that were left out for a share that is wrong by their or a device's doing.
    """

    opened: OpenedChecks
    with_products: bool
    dropped: frozenset[int]
    disputed: frozenset[int] = frozenset()


def open_truthful(
    params: RoundParameters,
    rows: Mapping[int, OpeningValues],
    num_members: int,
    *,
    with_products: bool,
) -> TrustedOpenings:
    """Open everything without the holders that are wrong at more than half of the members.

    Raises:
        EvidenceInsufficientError: if too few others are left, or more than half of the members'
            values do not open.
    """
    dropped: frozenset[int] = frozenset()
    opened = OpenedChecks(params, rows, num_members, with_products=with_products)
    while found := opened.outliers():
        dropped |= found
        rest = _without(rows, dropped)
        least = _least_left(params, with_products=with_products)
        if len(rest) < least:
            refuse_count("openings", len(rest), least)
        opened = OpenedChecks(params, rest, num_members, with_products=with_products)
    return TrustedOpenings(opened=opened, with_products=with_products, dropped=dropped)


def open_undisputed(
    params: RoundParameters, rows: Mapping[int, OpeningValues], truthful: TrustedOpenings
) -> TrustedOpenings | None:
    """Open everything without disputed holders too.

    Returns:
        None where none is disputed, where liars and disputed holders are more than t - 1, where too
        few others are left, or where those contradict each other.
    """
    disputed = frozenset(truthful.opened.disputed())
    bad = truthful.dropped | disputed
    left = len(rows) - len(bad)
    with_products = truthful.with_products
    too_few = left < _least_left(params, with_products=with_products)
    if not disputed or len(bad) >= params.threshold or too_few:
        return None
    num_members = truthful.opened.num_members
    opened = OpenedChecks(params, _without(rows, bad), num_members, with_products=with_products)
    try:
        if opened.outliers():
            return None
    except EvidenceInsufficientError:
        return None
    return TrustedOpenings(
        opened=opened, with_products=with_products, dropped=truthful.dropped, disputed=disputed
    )


def refuse_count(name: str, count: int, needed: int) -> Never:
    """Refuse too few statements.

    Raises:
        EvidenceInsufficientError: always.
    """
    message = f"{name} of {count} truthful holders must be at least {needed}"
    raise EvidenceInsufficientError(message)


def _least_left(params: RoundParameters, *, with_products: bool) -> int:
    """Count linear values to keep: one more than opens them, so that a wrong one is seen."""
    return params.scheme.product_shares if with_products else params.threshold + 1


def _without(rows: Mapping[int, OpeningValues], bad: frozenset[int]) -> dict[int, OpeningValues]:
    return {holder: values for holder, values in rows.items() if holder not in bad}
