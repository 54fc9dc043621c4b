import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.registry import PEERS, PeerMissing, load_ways
from benchmarks.kernels.rules import GEOMETRIC_MEDIAN, RULES, make_rows
from benchmarks.kernels.ways import Way

SHAPES = [(11, 500), (40, 500)]


def _marks(peer: str) -> list[pytest.MarkDecorator]:
    """Both are installed with all the other libraries that are only compared with."""
    if peer not in {"byzfl", "flwr"}:
        return []
    missing = pytest.mark.skip(reason=f"{peer} is not installed: make peers")
    return [pytest.mark.peers, *([] if registry.is_installed(peer) else [missing])]


def _ways() -> list[Any]:
    found = []
    for peer in PEERS:
        try:
            of_rules = load_ways(peer)
        except PeerMissing:
            found.append(pytest.param("", None, id=peer, marks=_marks(peer)))
            continue
        found += [
            pytest.param(rule, way, id=f"{peer}: {rule}, {way.name}", marks=_marks(peer))
            for rule, ways in of_rules.items()
            for way in ways
        ]
    return found


PARAMS = [pytest.param(peer, marks=_marks(peer)) for peer in PEERS]


@pytest.mark.parametrize(("rule", "way"), _ways())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_of_every_library_computes_the_rule(
    rule: str, way: Way, shape: tuple[int, int]
) -> None:
    rows = make_rows(*shape, seed=1)
    before = rows.copy()
    num_byzantine = RULES[rule].num_byzantine(len(rows))
    ours = RULES[rule].way().bind(rows, num_byzantine)()
    theirs = way.bind(rows, num_byzantine)()
    # Three Weiszfeld steps from different points end near each other, not in one point; values
    # are around 1, and the others round in float32.
    tolerance = 0.03 if rule == GEOMETRIC_MEDIAN else 2e-5
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("peer", PARAMS)
def test_a_call_can_be_repeated(peer: str) -> None:
    rows = make_rows(11, 40, seed=2)
    for rule, ways in load_ways(peer).items():
        for way in ways:
            call = way.bind(rows, RULES[rule].num_byzantine(len(rows)))
            np.testing.assert_array_equal(call(), call())


@pytest.mark.parametrize("peer", PARAMS)
def test_every_library_computes_rules_that_are_measured(peer: str) -> None:
    if _marks(peer):
        assert set(load_ways(peer)) < set(RULES)
    else:
        assert set(load_ways(peer)) == set(RULES)


@pytest.mark.parametrize("peer", [one for one in PARAMS if one.values == ("byzfl",)])
def test_loading_byzfl_leaves_no_half_imported_package(peer: str) -> None:
    load_ways(peer)
    assert "byzfl" not in sys.modules


def test_a_library_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "is_installed", lambda package: package != "torch")
    with pytest.raises(PeerMissing, match=r"^torch not installed$"):
        load_ways("torch")
    with pytest.raises(PeerMissing, match=r"^torch not installed$"):
        load_ways("byzfl")
    assert load_ways("numpy")


def test_a_library_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.kernels.peers.torch_peer", None)
    with pytest.raises(PeerMissing, match="cannot be imported"):
        load_ways("torch")
