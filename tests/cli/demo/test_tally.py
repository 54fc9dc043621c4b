from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from cli.demo.tally import Tally, model_bytes_down, tally
from simulation.fleet.event_log import Field

Events = list[dict[str, Field]]


def _event(kind: str, device: str, number: int, submission: str = "s") -> dict[str, Field]:
    return {"event": kind, "device": device, "round": number, "submission_id": submission}


def _delivered(places: Sequence[tuple[int, str]]) -> Events:
    return [
        _event(kind, device, number)
        for number, device in places
        for kind in ("submitting", "acked")
    ]


def _count(events: Events, contributors: Mapping[int, Sequence[str]]) -> Tally:
    return tally(events, contributors, str.upper)


def test_what_was_acknowledged_and_counted_adds_up() -> None:
    found = _count(_delivered([(1, "a"), (1, "b"), (2, "a")]), {1: ["B", "A"], 2: ["A"]})
    assert found == Tally(acknowledged=3, lost=0, duplicate=0)


def test_an_acknowledged_update_that_is_in_no_round_is_lost() -> None:
    found = _count(_delivered([(1, "a"), (2, "a")]), {1: ["A"], 2: []})
    assert found == Tally(acknowledged=2, lost=1, duplicate=0)


def test_an_acknowledged_update_of_a_round_that_was_passed_over_is_lost() -> None:
    found = _count(_delivered([(1, "a"), (2, "a")]), {2: ["A"]})
    assert found == Tally(acknowledged=2, lost=1, duplicate=0)


def test_an_acknowledged_update_of_a_round_still_open_is_not_lost() -> None:
    found = _count(_delivered([(1, "a"), (2, "a")]), {1: ["A"]})
    assert found == Tally(acknowledged=2, lost=0, duplicate=0)


def test_a_contribution_in_another_round_does_not_make_up_for_it() -> None:
    found = _count(_delivered([(1, "a")]), {1: [], 2: ["A"]})
    assert found == Tally(acknowledged=1, lost=1, duplicate=1)


def test_an_update_whose_acknowledgement_got_lost_may_count() -> None:
    found = _count([_event("submitting", "a", 1)], {1: ["A"]})
    assert found == Tally(acknowledged=0, lost=0, duplicate=0)


def test_a_contribution_nobody_submitted_is_one_too_many() -> None:
    assert _count([], {1: ["A"]}).duplicate == 1


def test_a_device_listed_twice_counts_twice() -> None:
    assert _count(_delivered([(1, "a")]), {1: ["A", "A"]}).duplicate == 1


def test_two_acknowledged_updates_of_one_device_in_one_round_are_one_too_many() -> None:
    events = [*_delivered([(1, "a")]), _event("acked", "a", 1, "other")]
    assert _count(events, {1: ["A"]}) == Tally(acknowledged=2, lost=0, duplicate=1)


def test_a_repeated_acknowledgement_is_the_same_one() -> None:
    events = [*_delivered([(1, "a")]), _event("acked", "a", 1)]
    assert _count(events, {1: ["A"]}) == Tally(acknowledged=1, lost=0, duplicate=0)


@given(st.sets(st.tuples(st.integers(1, 5), st.sampled_from("abcdef")), min_size=1), st.data())
def test_dropping_or_repeating_one_contribution_is_always_seen(
    places: set[tuple[int, str]], data: st.DataObject
) -> None:
    events = _delivered(sorted(places))
    listed: dict[int, list[str]] = {number: [] for number in range(1, 6)}
    for number, device in places:
        listed[number].append(device.upper())
    number, device = data.draw(st.sampled_from(sorted(places)))
    assert _count(events, listed) == Tally(acknowledged=len(places), lost=0, duplicate=0)
    listed[number].append(device.upper())
    assert _count(events, listed).duplicate == 1
    listed[number] = [one for one in listed[number] if one != device.upper()]
    assert _count(events, listed) == Tally(acknowledged=len(places), lost=1, duplicate=0)


def test_a_device_fetches_a_version_once() -> None:
    events: Events = [
        {"event": "checked_in", "device": "a", "round": 1, "model_version": 1},
        {"event": "checked_in", "device": "b", "round": 1, "model_version": 1},
        {"event": "acked", "device": "b", "round": 1, "submission_id": "s"},
        # Round 1 was abandoned: the same version again.
        {"event": "checked_in", "device": "a", "round": 2, "model_version": 1},
        {"event": "checked_in", "device": "a", "round": 3, "model_version": 2},
    ]
    assert model_bytes_down(events, {1: 100, 2: 7}) == {1: 200, 2: 0, 3: 7}
