"""The record of what a round opens."""

from security.shared_round.opening.openings import opening_sizes
from security.shared_round.terms.leakage import leakage
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_facts import Checks
from tests.security.shared_round.shared_vectors import parameters


def test_counts_are_those_of_the_openings() -> None:
    params = parameters()
    inside = leakage(params, SelectionMode.CHECKED, num_members=40, num_suspects=20)
    holders = inside["holders and coordinator"]
    consistency, norms, wraps, distances = opening_sizes(params, 40)
    assert holders == {
        "consistency values": consistency,
        "norm verdicts": norms,
        "wrap scalars": wraps,
        "blame scalars": 20 * params.wrap_tests,
        "distances": distances,
    }
    assert inside["everybody"] == {"sums": 1, "sum elements": 300}


def test_degraded_and_unchecked_rounds_open_less() -> None:
    degraded = leakage(parameters(), SelectionMode.DEGRADED_GROUPED, num_members=40, num_sums=5)
    assert "distances" not in degraded["holders and coordinator"]
    assert degraded["everybody"]["sum elements"] == 1500
    plain = leakage(parameters(checks=Checks.SUM), SelectionMode.CHECKED, num_members=40)
    assert plain["holders and coordinator"] == {}
