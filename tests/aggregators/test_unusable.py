import random

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.compressed import AnyUpdate
from aggregators.errors import AggregationError
from aggregators.unusable import Reason, Rejection, finite, usable
from tests.aggregators.matrices import LARGEST, SMALLEST
from tests.looped import looped

GOOD = np.ones(3, dtype=np.float32)
SIGNALLING_NAN = np.frombuffer(bytes.fromhex("0000a07f") * 3, dtype="<f4")


def update(
    key: str, vector: NDArray[np.generic] = GOOD, *, num_samples: float = 1, trust: float = 1.0
) -> Update:
    """Make what a device may send, of any types."""
    return Update(key=key, vector=vector, num_samples=num_samples, trust=trust)  # type: ignore[arg-type]  # under test


def parted(
    updates: list[Update], *, dim: int | None = None
) -> tuple[list[AnyUpdate], tuple[Rejection, ...]]:
    kept, first = usable(updates, dim=dim)
    remaining, second = finite(kept)
    return remaining, tuple(sorted((*first, *second), key=lambda rejection: rejection.key))


BAD = {
    "too_short": (update("x", GOOD[:2]), Reason.WRONG_SHAPE),
    "too_long": (update("x", np.ones(4, dtype=np.float32)), Reason.WRONG_SHAPE),
    "empty": (update("x", GOOD[:0]), Reason.WRONG_SHAPE),
    "scalar": (update("x", np.array(1.0, dtype=np.float32)), Reason.WRONG_SHAPE),
    "matrix": (update("x", GOOD.reshape(1, 3)), Reason.WRONG_SHAPE),
    "double": (update("x", np.ones(3)), Reason.WRONG_TYPE),
    "half": (update("x", np.ones(3, dtype=np.float16)), Reason.WRONG_TYPE),
    "integers": (update("x", np.ones(3, dtype=np.int32)), Reason.WRONG_TYPE),
    "complex": (update("x", np.ones(3, dtype=np.complex64)), Reason.WRONG_TYPE),
    "objects": (update("x", np.array([1, "2", None], dtype=object)), Reason.WRONG_TYPE),
    "big_endian": (update("x", np.ones(3, dtype=">f4")), Reason.WRONG_TYPE),
    "no_samples": (update("x", num_samples=0), Reason.BAD_SAMPLE_COUNT),
    "negative_samples": (update("x", num_samples=-5), Reason.BAD_SAMPLE_COUNT),
    "nan_samples": (update("x", num_samples=float("nan")), Reason.BAD_SAMPLE_COUNT),
    "too_trusted": (update("x", trust=1.0001), Reason.BAD_TRUST),
    "negative_trust": (update("x", trust=-1e-300), Reason.BAD_TRUST),
    "nan_trust": (update("x", trust=float("nan")), Reason.BAD_TRUST),
    "nan": (update("x", GOOD * np.float32("nan")), Reason.NOT_FINITE),
    "one_nan": (update("x", np.array([1, np.nan, 1], dtype=np.float32)), Reason.NOT_FINITE),
    "infinity": (update("x", np.array([1, 1, np.inf], dtype=np.float32)), Reason.NOT_FINITE),
    "minus_infinity": (update("x", np.array([-np.inf, 1, 1], dtype=np.float32)), Reason.NOT_FINITE),
    "signalling_nan": (update("x", SIGNALLING_NAN), Reason.NOT_FINITE),
}


@looped("name", BAD)
def test_what_no_rule_could_combine_is_left_out_with_the_reason(name: str) -> None:
    bad, reason = BAD[name]
    good = [update("a"), update("z")]
    kept, rejections = parted([good[1], bad, good[0]])
    assert kept == good
    assert rejections == (Rejection(key="x", reason=reason),)


def test_several_are_left_out_each_for_its_own_reason() -> None:
    bad = [
        update(f"{place}", each.vector, num_samples=each.num_samples, trust=each.trust)
        for place, (each, _) in enumerate(BAD.values())
    ]
    good = [update(f"good-{place}") for place in range(30)]
    mixed = [*bad, *good]
    random.Random(1).shuffle(mixed)
    kept, rejections = parted(mixed)
    assert kept == sorted(good, key=lambda each: each.key)
    assert {rejection.key: rejection.reason for rejection in rejections} == {
        f"{place}": reason for place, (_, reason) in enumerate(BAD.values())
    }
    assert [rejection.key for rejection in rejections] == sorted(str(i) for i in range(len(bad)))


def test_reasons_are_what_audit_logs_hold() -> None:
    assert {reason.name: reason.value for reason in Reason} == {
        "WRONG_SHAPE": "wrong_shape",
        "WRONG_TYPE": "wrong_type",
        "NOT_FINITE": "not_finite",
        "BAD_SAMPLE_COUNT": "bad_sample_count",
        "BAD_TRUST": "bad_trust",
    }


@looped("value", [0.0, -0.0, SMALLEST, -1e-40, 1e30, LARGEST, -LARGEST])
def test_extreme_values_are_usable(value: float) -> None:
    sent = update("x", np.full(3, value, dtype=np.float32))
    assert usable([sent]) == ([sent], ())


def test_updates_with_gaps_between_their_values_are_usable() -> None:
    sent = update("x", np.ones((3, 2), dtype=np.float32)[:, 0])
    assert usable([sent]) == ([sent], ())


def test_most_updates_decide_the_dimension() -> None:
    two = [update(f"two-{place}", GOOD[:2]) for place in range(3)]
    three = [update(f"three-{place}") for place in range(2)]
    kept, rejections = parted([*three, *two])
    assert kept == two
    assert [rejection.reason for rejection in rejections] == [Reason.WRONG_SHAPE] * 2


def test_of_equally_many_the_lesser_dimension_counts() -> None:
    updates = [update("a"), update("b", GOOD[:2]), update("c"), update("d", GOOD[:2])]
    assert [each.key for each in usable(updates)[0]] == ["b", "d"]
    assert [each.key for each in usable(updates[::-1])[0]] == ["b", "d"]


def test_what_is_no_vector_has_no_vote_on_the_dimension() -> None:
    strange = [
        update("a", GOOD[:0]),
        update("b", GOOD[:0]),
        update("c", GOOD.reshape(3, 1)),
        update("d", np.ones((3, 1), dtype=np.float32)),
    ]
    kept, rejections = parted([*strange, update("e")])
    assert [each.key for each in kept] == ["e"]
    assert len(rejections) == 4


def test_a_given_dimension_overrules_the_majority() -> None:
    updates = [update("a"), update("b", GOOD[:2]), update("c", GOOD[:2])]
    assert [each.key for each in usable(updates, dim=3)[0]] == ["a"]


@pytest.mark.parametrize("updates", [[], [update("a", GOOD[:0])], [update("a", np.ones(3))]])
def test_there_may_be_nothing_usable(updates: list[Update]) -> None:
    kept, rejections = parted(updates)
    assert kept == []
    assert len(rejections) == len(updates)


def test_a_repeated_key_is_refused_even_if_one_of_the_two_is_unusable() -> None:
    with pytest.raises(AggregationError, match="key 'a' must be unique"):
        usable([update("a"), update("b"), update("a", GOOD[:0])])


def test_updates_are_not_modified() -> None:
    sent = update("a", np.array([1.0, np.nan, 3.0], dtype=np.float32))
    before = sent.vector.tobytes()
    usable([sent])
    assert sent.vector.tobytes() == before
