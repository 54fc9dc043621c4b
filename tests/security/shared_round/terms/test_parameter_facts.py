import pytest

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat, Word

WORDS: list[tuple[type[Word], dict[str, str]]] = [
    (ShareFormat, {}),
    (Checks, {"SUM": "SUM_ONLY"}),
    (Degraded, {}),
]


@pytest.mark.parametrize(("words", "renamed"), WORDS, ids=["format", "checks", "degraded"])
def test_numbers_are_those_of_the_messages(words: type[Word], renamed: dict[str, str]) -> None:
    message = getattr(pb, words.__name__)
    assert {renamed.get(word.name, word.name): word.number for word in words} == {
        name: number for name, number in message.items() if number
    }
    assert [words.numbered(word.number) for word in words] == list(words)
    for number in (0, len(words) + 1, -1):
        with pytest.raises(ValueError, match=f"{number} is no {words.__name__}"):
            words.numbered(number)


def test_each_level_of_checks_includes_those_before_it() -> None:
    assert [[one.includes(other) for other in Checks] for one in Checks] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
