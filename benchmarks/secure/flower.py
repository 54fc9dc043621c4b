"""A whole shared round beside a whole round of Flower's SecAgg+, on the same updates.

Each has one process, and neither a network or a disk. Every device, every share holder and every
server does all of its work in turn; processor time is that of one core.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.shared_selection import select
from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.cpu import Spent
from benchmarks.harness.figures import Figures, Target, judged, rounded
from benchmarks.harness.processes import PEERS_PYTHON
from benchmarks.secure import secagg
from benchmarks.secure.parties import (
    Holder,
    Parties,
    Shape,
    Update,
    device_id_of,
    flip_coin,
    holders_of,
    random_update,
    read_all,
)
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import judge
from security.shared_round.terms.member_set import FrozenSet, Member, Selection
from security.shared_round.update.bundle import check_structure, parse_prefix
from updates.codec import dense_payload_bytes

NUM_SHARES: Final = 15
RECONSTRUCTION_THRESHOLD: Final = 10
MAX_ERROR: Final = 1e-6
VARIANTS: Final = (("shamir-seeded", "sum"), ("shamir-seeded", "norm"), ("cnf-seeded", "norm"))

_WARM_UP_CLIENTS: Final = 5
_WARM_UP_DIM: Final = 1_000
_DEVICE: Final = "device"
_COORDINATOR: Final = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSize:
    """Clients that all take part, and the elements of an update."""

    clients: int
    dim: int


SIZES: Final = (
    CohortSize(clients=20, dim=1_000),
    CohortSize(clients=100, dim=1_000),
    CohortSize(clients=20, dim=100_000),
    CohortSize(clients=100, dim=100_000),
    CohortSize(clients=20, dim=1_000_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """One round, in processor seconds, and bytes of one client.

    Attributes:
        round_s: everything that anybody did.
        device_s: of one client on average.
        servers_s: of all servers together.
        slowest_server_s: of the one that did most.
        bytes_up, bytes_down: of one client on average, the model included.
        max_error: largest difference from the mean in float64.
    """

    round_s: float
    device_s: float
    servers_s: float
    slowest_server_s: float
    bytes_up: float
    bytes_down: float
    max_error: float


def measure(rounds: int, *, size: CohortSize) -> list[Figures]:
    """Give one row for SecAgg+, then one for each variant of ours; the fastest round counts."""
    parties = Parties.meet()
    # What is compiled or loaded once is no round's.
    warm_up = CohortSize(clients=_WARM_UP_CLIENTS, dim=_WARM_UP_DIM)
    _rounds_of_ours(parties, warm_up, _updates(warm_up), 1)
    updates = _updates(size)
    system, best = _secagg_round(updates, rounds)
    ours = _rounds_of_ours(parties, size, updates, rounds)
    return [
        _row(size, system, best),
        *(
            _row(size, f"{share_format}, {checks}", min(found, key=_seconds), beside=best)
            for (share_format, checks), found in ours.items()
        ),
    ]


def _updates(size: CohortSize) -> list[Update]:
    return [random_update(size.dim, seed=number) for number in range(size.clients)]


def _rounds_of_ours(
    parties: Parties, size: CohortSize, updates: Sequence[Update], rounds: int
) -> dict[tuple[str, str], list[RoundCost]]:
    found: dict[tuple[str, str], list[RoundCost]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for (share_format, checks), costs in found.items():
            shape = Shape(format=share_format, checks=checks, dim=size.dim, clients=size.clients)
            costs.append(run_round(parties, shape, updates))
    return found


def run_round(parties: Parties, shape: Shape, updates: Sequence[Update]) -> RoundCost:
    """Share every update, check and open the sum."""
    running = _SharedRound(parties, shape)
    for number, update in enumerate(updates):
        running.take_part(device_id_of(number), update)
    total = running.open_sum()
    params, spent = running.params, running.spent.seconds
    mean = total / 2.0**params.fraction_bits / len(updates)
    servers = [seconds for name, seconds in spent.items() if name != _DEVICE]
    return RoundCost(
        round_s=sum(spent.values()),
        device_s=spent[_DEVICE] / len(updates),
        servers_s=sum(servers),
        slowest_server_s=max(servers),
        bytes_up=running.bytes_up / len(updates),
        bytes_down=len(params.to_bytes()) + dense_payload_bytes(params.dim),
        max_error=float(np.abs(mean - np.mean(updates, axis=0, dtype=np.float64)).max()),
    )


class _SharedRound:
    """One round of ours, everybody's processor time apart."""

    def __init__(self, parties: Parties, shape: Shape) -> None:
        self.params = parties.round_of(shape)
        self.spent = Spent()
        self.bytes_up = 0
        self._parties = parties
        self._holders = holders_of(parties, self.params)
        self._members: list[Member] = []

    def take_part(self, device_id: str, update: Update) -> None:
        """Bring one device's update to all holders."""
        params, on = self.params, self.spent.on
        self._parties.signer(device_id)  # enrolled before the round
        sealed = on(_DEVICE, self._parties.seal, params, device_id, update)
        on(_DEVICE, read_all, sealed)
        bundle = sealed[:]  # a device keeps no more than a piece of it
        prefix, prefix_bytes = on(_COORDINATOR, parse_prefix, bundle)
        index = on(
            _COORDINATOR,
            check_structure,
            params,
            prefix,
            prefix_bytes=prefix_bytes,
            total_bytes=len(bundle),
            device_id=device_id,
        )
        for holder in self._holders:
            on(_name(holder), holder.take, prefix, index, bundle)
        self.bytes_up += len(bundle)
        self._members.append(Member(device_id=device_id, header_sha256=sealed.header_sha256))

    def open_sum(self) -> NDArray[np.int64]:
        """Freeze, check, select and open; the sum in units of 2^-fraction_bits."""
        params, on = self.params, self.spent.on
        frozen = FrozenSet(params_sha256=params.sha256, attempt=1, members=tuple(self._members))
        selection = self._check(frozen)
        shares = {
            holder.index: on(_name(holder), holder.sums, selection.sums) for holder in self._holders
        }
        weights = [len(positions) for positions in selection.sums]
        (total,) = on(_COORDINATOR, open_sums, params, shares, weights=weights).sums
        return total

    def _check(self, frozen: FrozenSet) -> Selection:
        """Open the checks; holders and coordinator all derive the selection."""
        params, on = self.params, self.spent.on
        coin = on(_COORDINATOR, flip_coin, self._parties, params, frozen.sha256)
        openings = {
            holder.index: on(_name(holder), holder.openings, coin, frozen.sha256, holder.vectors)
            for holder in self._holders
        }

        def derive() -> Selection:
            verdict = judge(params, coin, len(frozen.members), openings)
            return select(params, coin, verdict, set_sha256=frozen.sha256)

        for holder in self._holders:
            on(_name(holder), derive)
        return on(_COORDINATOR, derive)


def _secagg_round(updates: Sequence[Update], rounds: int) -> tuple[str, RoundCost]:
    clients = len(updates)
    settings = secagg.SecAggSettings(
        num_shares=min(NUM_SHARES, clients - 1 + clients % 2),
        threshold=min(RECONSTRUCTION_THRESHOLD, clients // 2 + 1),
        # The narrowest that clips nothing: no other would be as exact.
        clipping_range=max(float(np.abs(update).max()) for update in updates),
        rounds=rounds,
    )
    found = secagg.measure(updates, settings)
    return f"SecAgg+ of flwr {found.version}", RoundCost(
        round_s=found.server_s + clients * found.client_s,
        device_s=found.client_s,
        servers_s=found.server_s,
        slowest_server_s=found.server_s,
        bytes_up=found.bytes_up,
        bytes_down=found.bytes_down,
        max_error=found.max_error,
    )


def _missing() -> str:
    return "" if PEERS_PYTHON.exists() else "it is not installed, `make peers` does that"


def _row(
    size: CohortSize, system: str, cost: RoundCost, *, beside: RoundCost | None = None
) -> Figures:
    targets = []
    if beside is not None:
        round_ratio, device_ratio = (
            cost.round_s / beside.round_s,
            cost.device_s / beside.device_s,
        )
        targets = [
            Target(name="round", figure=round_ratio, limit=1.0, unit="x SecAgg+"),
            Target(name="device", figure=device_ratio, limit=1.0, unit="x SecAgg+"),
            Target(name="error", figure=cost.max_error, limit=MAX_ERROR),
        ]
    return {
        "system": system,
        "clients": size.clients,
        "dim": size.dim,
        "round_s": rounded(cost.round_s),
        "device_ms": rounded(1e3 * cost.device_s),
        "servers_s": rounded(cost.servers_s),
        "slowest_server_s": rounded(cost.slowest_server_s),
        "bytes_up": round(cost.bytes_up),
        "bytes_down": round(cost.bytes_down),
        "max_error": rounded(cost.max_error),
        **judged(*targets),
    }


def _seconds(cost: RoundCost) -> float:
    return cost.round_s


def _name(holder: Holder) -> str:
    return f"holder {holder.index}"


def _warm_up(size: CohortSize) -> CohortSize:
    return CohortSize(clients=_WARM_UP_CLIENTS, dim=size.dim)


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name=f"{size.clients} clients, {size.dim:,} elements",
            full=partial(measure, size=size),
            quick=None if number else partial(measure, size=_warm_up(size)),
        )
        for number, size in enumerate(SIZES)
    ],
    repeats=3,
    missing=_missing,
)
