"""What follows from the statements about a frozen set: who passed, what is summed, the sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregators.errors import AggregationError
from aggregators.shared_selection import select
from security.errors import EvidenceInsufficientError, SecurityError
from security.secret_sharing.field import Words
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import Verdict, judge, judge_blame
from security.shared_round.terms.member_set import FrozenSet, Selection, SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from server.processes.thread_pool import Workers
from server.round.ports import Contribution
from server.sharing.conversation import Conversation
from server.sharing.released_sums import ReleasedSums
from server.sharing.round_checks import RoundHopeless, possible_modes


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """Who passed, and the sums that are to be opened."""

    verdict: Verdict
    selection: Selection


async def conclude(
    params: RoundParameters, talk: Conversation, coin: Coin, *, workers: Workers
) -> Concluded | str:
    """Judge the openings so far, with blame where groups failed, and derive the selection.

    Returns:
        The conclusion, or why there is none yet.

    Raises:
        RoundHopeless: if no further statement can help.
    """
    problem = f"{len(talk.openings)} share holders opened the checks"
    for mode in possible_modes(params, len(talk.openings)):
        try:
            verdict = await _verdict(params, talk, coin, mode, workers)
        except EvidenceInsufficientError as error:
            problem = str(error)
            continue
        try:
            selection = await workers.run(
                select, params, coin, verdict, set_sha256=talk.frozen.sha256, mode=mode
            )
        except (SecurityError, AggregationError) as error:
            if mode is SelectionMode.CHECKED:
                raise RoundHopeless(str(error)) from error
            problem = str(error)  # the full checks may still be opened
            continue
        return Concluded(verdict=verdict, selection=selection)
    return problem


async def open_released(  # noqa: PLR0913  # what is opened, and what it is of
    params: RoundParameters,
    shares: Mapping[int, list[Words]],
    contributions: Sequence[Contribution],
    *,
    frozen: FrozenSet,
    selection: Selection,
    workers: Workers,
) -> ReleasedSums:
    """Put the holders' shares of the sums together.

    Args:
        params: the round.
        shares: by holder, of those that are to be relied upon.
        contributions: what was admitted to the round.
        frozen: the set.
        selection: of it.
        workers: where they are opened.

    Raises:
        TooFewSharesError: if they are too few.
        InconsistentSharesError: if wrong ones cannot be told from right ones.
    """
    weight_of = {c.device_id: params.staleness_weight(c.model_version) for c in contributions}
    names = [member.device_id for member in frozen.members]
    weights = tuple(
        sum(weight_of[names[position]] for position in members) for members in selection.sums
    )
    opened = await workers.run(open_sums, params, shares, weights=weights)
    in_sums = {names[position] for position in selection.members}
    return ReleasedSums(
        params=params,
        opened=opened,
        weights=weights,
        excluded=tuple(c.device_id for c in contributions if c.device_id not in in_sums),
        members=len(in_sums),
    )


async def _verdict(
    params: RoundParameters,
    talk: Conversation,
    coin: Coin,
    mode: SelectionMode,
    workers: Workers,
) -> Verdict:
    openings = {holder: stated.value for holder, stated in talk.openings.items()}
    members = len(talk.frozen.members)
    verdict = await workers.run(judge, params, coin, members, openings, mode=mode)
    if not verdict.suspects:
        return verdict
    await talk.ask_blame(coin, verdict.suspects)
    blame = {holder: stated.value for holder, stated in talk.blame.items()}
    return await workers.run(judge_blame, params, verdict, blame)
