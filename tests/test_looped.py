"""Every case runs, and those that fail are told."""

import inspect

import pytest

from tests.looped import looped

SEEN: list[tuple[int, str]] = []


@pytest.mark.parametrize("first", [1, 2])
@looped("second, third", [("a", 0), ("b", 0)])
@looped("fourth", range(2))
def test_cases_run_within_the_tests_that_are_left(
    first: int, second: str, third: int, fourth: int
) -> None:
    SEEN.append((first, second))
    assert third == 0
    assert fourth in {0, 1}
    assert SEEN.count((first, second)) == fourth + 1


def test_a_case_that_fails_is_told_with_its_values() -> None:
    seen = []

    @looped("number", [1, 2, 3])
    def odd(number: int) -> None:
        seen.append(number)
        assert number % 2

    with pytest.raises(AssertionError) as caught:
        odd()
    assert seen == [1, 2, 3]
    assert caught.value.__notes__ == ["in the case 2"]


def test_all_that_fail_are_told_by_their_names() -> None:
    @looped("number", [1, 2, 3], ids=["one", "two", "three"])
    def even(number: int) -> None:
        assert number % 2 == 0

    with pytest.raises(ExceptionGroup, match="2 of 3 cases") as caught:
        even()
    notes = [error.__notes__ for error in caught.value.exceptions]
    assert notes == [["in the case one"], ["in the case three"]]


def test_only_what_is_left_is_asked_for() -> None:
    @looped("number", [1])
    def test(folder: str, number: int) -> None:
        raise NotImplementedError(folder, number)

    assert list(inspect.signature(test).parameters) == ["folder"]
