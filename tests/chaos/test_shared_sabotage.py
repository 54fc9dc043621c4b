"""The simulation of shared rounds finds defects: each one put in on purpose breaks a promise."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from security.shared_round.opening import openings, sum_opening
from server.holder import rounds
from server.holder.statements.evidence import RoundEvidence
from server.holder.storage import holder_state
from server.holder.storage.holder_state import FreezeProposed, HolderPhase, HolderRound
from server.sharing import conclusion, shared_rounds
from server.sharing.relay import Relay
from tests.chaos.promise import BrokenPromise
from tests.chaos.shared_coordinator import SharedLaboratory
from tests.chaos.shared_operations import (
    ALL,
    HOLDERS,
    Admit,
    Attack,
    Drive,
    Lie,
    Lying,
    Open,
    Operation,
    Setup,
    Step,
)
from tests.chaos.shared_simulation import SharedSimulation

Sabotage = Callable[[pytest.MonkeyPatch], None]

_EVERYBODY: Final = frozenset(range(1, HOLDERS + 1))
_RELAYED: Final = (Open(), Admit(devices=ALL), Drive(ticks=1))
# Another set after the first one's coin, and everything that goes with it.
_TWO_SETS: Final = (
    *_RELAYED,
    Attack(until=Step.OPENINGS),
    Attack(leave_out=0, attempt=2),
    Attack(),
)
# The first set is released; then another one, which only one device tells from it.
_TWO_SUMS: Final = (*_RELAYED, Attack(), Attack(leave_out=0, attempt=2))
_HALF_A_QUORUM: Final = (
    *_RELAYED,
    Attack(holders=frozenset({1, 2, 4}), evidence=frozenset({1, 3})),
)
_PUBLISHED: Final = (*_RELAYED, Drive())
_LIES: Final = (*_RELAYED, Lying(lies=frozenset({Lie.SUM})), Drive())


def _allow(phase: HolderPhase, event: type[Any], after: HolderPhase) -> Sabotage:
    """A further entry of the holder's table."""

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        row = {**holder_state.ALLOWED[phase], event: after}
        patch.setattr(holder_state, "ALLOWED", {**holder_state.ALLOWED, phase: row})

    return sabotage


def _forget_commitment(patch: pytest.MonkeyPatch) -> None:
    """A commitment does not bind: each set starts anew."""
    step = holder_state._freeze

    def freeze(round_: HolderRound, event: FreezeProposed, after: HolderPhase) -> HolderRound:
        known = replace(round_, committed_set=b"", selection_sha256=b"", coin_sha256=b"")
        return step(known, event, after)

    patch.setattr(holder_state, "_freeze", freeze)
    table: dict[HolderPhase, Mapping[type[Any], HolderPhase]] = dict(holder_state.ALLOWED)
    for phase in set(table) - {HolderPhase.PURGED}:
        table[phase] = {**table[phase], FreezeProposed: HolderPhase.FROZEN}
    patch.setattr(holder_state, "ALLOWED", table)


def _quorum_of_two(patch: pytest.MonkeyPatch) -> None:
    def require(self: RoundEvidence, what: str, found: Mapping[int, object]) -> None:
        del self, what, found

    patch.setattr(RoundEvidence, "_require_quorum", require)


def _lose_member(patch: pytest.MonkeyPatch) -> None:
    """Holders leave the last member out of their sums."""
    sums = openings.sum_shares

    def shorter(params: Any, weighted: Sequence[Any], _: Any) -> Any:
        return sums(params, weighted[:-1], [range(len(weighted) - 1)])

    patch.setattr(rounds, "sum_shares", shorter)


def _wrong_weights(patch: pytest.MonkeyPatch) -> None:
    opened = sum_opening.open_sums

    def open_sums(params: Any, shares: Any, *, weights: Sequence[int]) -> Any:
        found = opened(params, shares, weights=weights)
        return replace(found, sums=tuple(total + 1 for total in found.sums))

    patch.setattr(conclusion, "open_sums", open_sums)


def _trust_one_share(patch: pytest.MonkeyPatch) -> None:
    """The coordinator does not look at redundant shares of the sums."""
    opened = sum_opening.open_sums

    def open_sums(params: Any, shares: Mapping[int, Any], *, weights: Sequence[int]) -> Any:
        return opened(params, {j: shares[j] for j in (2, 3) if j in shares}, weights=weights)

    patch.setattr(conclusion, "open_sums", open_sums)


def _lose_device(patch: pytest.MonkeyPatch) -> None:
    """A device that is in no set is forgotten, without a reason."""

    async def nobody(*_: object) -> tuple[tuple[str, str], ...]:
        return ()

    common = Relay.common
    patch.setattr(Relay, "common", lambda self, holders: common(self, holders)[1:])
    patch.setattr(shared_rounds.SharedRoundPhases, "_not_frozen", nobody)


SABOTAGES: Final[Mapping[str, tuple[Sabotage, Sequence[Operation]]]] = {
    "a_holder_votes_again_after_its_coin": (
        _allow(HolderPhase.OPENINGS, FreezeProposed, HolderPhase.FROZEN),
        _TWO_SETS,
    ),
    "a_holder_releases_two_sums": (_forget_commitment, _TWO_SUMS),
    "two_votes_are_a_quorum": (_quorum_of_two, _HALF_A_QUORUM),
    "a_member_is_in_no_sum": (_lose_member, _PUBLISHED),
    "the_sum_is_off_by_one": (_wrong_weights, _PUBLISHED),
    "redundant_shares_are_not_looked_at": (_trust_one_share, _LIES),
    "a_device_is_forgotten": (_lose_device, _PUBLISHED),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_the_simulation_finds_it(
    name: str, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage, operations = SABOTAGES[name]
    sabotage(monkeypatch)

    async def simulate() -> None:
        lab = SharedLaboratory(store_url, tmp_path)
        await lab.start()
        try:
            await SharedSimulation(lab, Setup(degraded="unchecked")).run(operations)
        finally:
            await lab.close()

    with pytest.raises(BrokenPromise):
        asyncio.run(simulate())
