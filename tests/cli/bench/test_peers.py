import sys
from typing import Any

import numpy as np
import pytest

from cli.bench import peers
from cli.bench.cases import CASES, GEOMETRIC_MEDIAN, make_rows
from cli.bench.peers import PEERS, PeerMissing, load_ways
from cli.bench.ways import Way

SHAPES = [(11, 500), (40, 500)]


def _ways() -> list[Any]:
    return [
        pytest.param(rule, way, id=f"{peer}: {rule}, {way.name}")
        for peer in PEERS
        for rule, ways in load_ways(peer).items()
        for way in ways
    ]


@pytest.mark.parametrize(("rule", "way"), _ways())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_of_every_library_computes_the_rule(
    rule: str, way: Way, shape: tuple[int, int]
) -> None:
    rows = make_rows(*shape, seed=1)
    before = rows.copy()
    num_byzantine = CASES[rule].num_byzantine(len(rows))
    ours = CASES[rule].way().bind(rows, num_byzantine)()
    theirs = way.bind(rows, num_byzantine)()
    # Three Weiszfeld steps from different points end near each other, not in one point; values
    # are around 1, and the others round in float32.
    tolerance = 0.03 if rule == GEOMETRIC_MEDIAN else 2e-5
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("peer", PEERS)
def test_a_call_can_be_repeated(peer: str) -> None:
    rows = make_rows(11, 40, seed=2)
    for rule, ways in load_ways(peer).items():
        for way in ways:
            call = way.bind(rows, CASES[rule].num_byzantine(len(rows)))
            np.testing.assert_array_equal(call(), call())


def test_every_library_computes_rules_that_are_measured() -> None:
    for peer in PEERS:
        assert set(load_ways(peer)) <= set(CASES)
    assert set(load_ways("numpy")) == set(load_ways("torch")) == set(CASES)


def test_loading_byzfl_leaves_no_half_imported_package() -> None:
    load_ways("byzfl")
    assert "byzfl" not in sys.modules


def test_a_library_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_installed", lambda package: package != "torch")
    with pytest.raises(PeerMissing, match=r"^torch not installed$"):
        load_ways("torch")
    with pytest.raises(PeerMissing, match=r"^torch not installed$"):
        load_ways("byzfl")
    assert load_ways("numpy")


def test_a_library_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cli.bench.flwr_peer", None)
    with pytest.raises(PeerMissing, match="cannot be imported"):
        load_ways("flwr")
