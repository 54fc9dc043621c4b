"""The whole protocol of a round on shares, under mixtures of devices and holders."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.shared_selection import select
from security.errors import EvidenceInsufficientError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import FailureReason, judge, judge_blame
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.security.shared_round.shared_vectors import (
    Committee,
    device_vector,
    integers,
    parameters,
    update,
)

P = 2**61 - 1
SCHEMES = [(2, 3), (2, 5), (3, 5), (3, 7)]
KINDS = ["honest", "over-norm", "half", "half-negative", "bad-bits", "inconsistent"]
REASONS = {
    "over-norm": FailureReason.NORM,
    "half": FailureReason.WRAP,
    "half-negative": FailureReason.WRAP,
    "bad-bits": FailureReason.NORM,
    "inconsistent": FailureReason.INCONSISTENT,
}


def vector_of(params: RoundParameters, kind: str, seed: int) -> Words:
    rng = np.random.default_rng(seed)
    if kind in {"half", "half-negative"}:
        element = (P + 1) // 2 if kind == "half" else (P - 1) // 2
        words = integers(params, [element] * 4 + [0] * (params.dim - 4))
        return device_vector(params, words, seed, claimed=1)
    if kind == "over-norm":
        words = integers(params, [3 * params.norm_bound] + [0] * (params.dim - 1))
        return device_vector(params, words, seed, claimed=params.norm_bound**2)
    vector = device_vector(params, update(params, rng), seed)
    if kind == "bad-bits":
        vector[params.dim + 1] = P - 5
    return vector


def committee_of(params: RoundParameters, kinds: list[str]) -> Committee:
    group = Committee.of(params, [vector_of(params, kind, i) for i, kind in enumerate(kinds)])
    for position, kind in enumerate(kinds):
        if kind == "inconsistent":
            holder = 1 + position % params.holders
            group.shares[holder][position] = group.shares[holder][position] ^ np.uint64(2)
    return group


@pytest.mark.slow
@given(
    scheme=st.sampled_from(SCHEMES),
    format_=st.sampled_from(list(ShareFormat)),
    group=st.sampled_from([2, 5, 32]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=6, max_size=12),
)
def test_exactly_the_honest_are_summed(
    scheme: tuple[int, int], format_: ShareFormat, group: int, kinds: list[str]
) -> None:
    if format_ is ShareFormat.CNF_SEEDED:  # pieces are compared by hash there, before
        kinds = [kind for kind in kinds if kind != "inconsistent"]
    kinds = [*kinds, *["honest"] * (len(kinds) + 3)]
    params = parameters(threshold=scheme[0], holders=scheme[1], format=format_, dim=40)
    params = replace(params, wrap_group=group, mask_scale=3)
    committee = committee_of(params, kinds)
    coin = committee.coin()
    verdict = judge(params, coin, len(kinds), committee.openings(coin))
    verdict = judge_blame(params, verdict, committee.blame(coin, verdict.suspects))

    # Holders at which a member's share is wrong are left out where the others are enough.
    disputed = {1 + i % params.holders for i, kind in enumerate(kinds) if kind == "inconsistent"}
    rest = params.holders - len(disputed)
    if len(disputed) < params.threshold and rest >= params.scheme.product_shares:
        kinds = ["honest" if kind == "inconsistent" else kind for kind in kinds]
    else:
        disputed = set()
    assert verdict.disputed == tuple(sorted(disputed))
    honest = [i for i, kind in enumerate(kinds) if kind == "honest"]
    assert list(verdict.passed) == honest
    assert verdict.liars == ()
    # What a member is left out for is the first thing found; a wrapping one may be long as well.
    assert dict(verdict.failed) == {
        i: REASONS[kind] for i, kind in enumerate(kinds) if kind != "honest"
    }

    selection = select(params, coin, verdict, set_sha256=committee.set_sha256)
    shares = {j: words for j, words in committee.sums(selection.sums).items() if j not in disputed}
    opened = open_sums(params, shares, weights=[len(honest)])
    expected = sum(
        centered(vector_of(params, "honest", i)[: params.dim], params.field) for i in honest
    )
    assert np.array_equal(opened.sums[0], expected)


@pytest.mark.parametrize("format_", list(ShareFormat))
def test_a_degraded_round_with_a_holder_away_still_leaves_out_wrapping_updates(
    format_: ShareFormat,
) -> None:
    params = parameters(format=format_, degraded=Degraded.GROUPED, rule="multi-krum")
    kinds = ["honest"] * 16 + ["half", "half-negative"]
    committee = committee_of(params, kinds)
    coin = committee.coin()
    mode = SelectionMode.DEGRADED_GROUPED
    here = (1, 2, 4, 5)
    rows = {j: row for j, row in committee.openings(coin).items() if j in here}
    verdict = judge(params, coin, len(kinds), rows, mode=mode)
    blame = {j: row for j, row in committee.blame(coin, verdict.suspects).items() if j in here}
    verdict = judge_blame(params, verdict, blame)
    assert verdict.failed == {16: FailureReason.WRAP, 17: FailureReason.WRAP}
    selection = select(params, coin, verdict, set_sha256=committee.set_sha256, mode=mode)
    assert [len(members) for members in selection.sums] == [8, 8]
    shares = committee.sums(selection.sums)
    opened = open_sums(params, {j: shares[j] for j in here}, weights=[8, 8])
    for members, total in zip(selection.sums, opened.sums, strict=True):
        vectors = [vector_of(params, "honest", i)[: params.dim] for i in members]
        assert np.array_equal(total, sum(centered(words, params.field) for words in vectors))


def test_all_holders_derive_the_same_from_what_they_are_shown() -> None:
    params = parameters(threshold=2, holders=5, rule="multi-krum", num_byzantine=1)
    committee = committee_of(params, ["honest"] * 8 + ["half"])
    coin = committee.coin()
    rows = committee.openings(coin)
    selections = set()
    for shown in ((1, 2, 3, 5), (2, 3, 4, 5), (5, 4, 3, 2, 1)):
        verdict = judge(params, coin, 9, {j: rows[j] for j in shown})
        blame = committee.blame(coin, verdict.suspects)
        verdict = judge_blame(params, verdict, {j: blame[j] for j in shown})
        selections.add(select(params, coin, verdict, set_sha256=committee.set_sha256).sha256)
    assert len(selections) == 1


def test_nobody_derives_anything_from_another_set_s_openings() -> None:
    params = parameters()
    committee = committee_of(params, ["honest"] * 5)
    coin = committee.coin()
    rows = committee.openings(coin)
    other = replace(committee, set_sha256=bytes(32))
    rows[3] = other.openings(coin)[3]
    verdict = judge(params, coin, 5, rows)
    assert verdict.passed == ()  # each norm has another sharing of zero in it
    with pytest.raises(EvidenceInsufficientError):
        judge(params, coin, 6, rows)


def test_stale_updates_count_by_their_weights() -> None:
    params = parameters(checks=Checks.SUM, staleness_weights=(4, 1))
    committee = committee_of(params, ["honest"] * 4)
    weights = {0: params.staleness_weight(7), 1: params.staleness_weight(6), 2: 4, 3: 4}
    opened = open_sums(params, committee.sums([range(4)], weights), weights=[sum(weights.values())])
    expected = sum(
        weight * centered(vector_of(params, "honest", i)[: params.dim], params.field)
        for i, weight in weights.items()
    )
    assert np.array_equal(opened.sums[0], expected)
