"""Committees: written, read, and refused when malformed."""

import dataclasses
import json
import random
from typing import Any

import pytest

from security.errors import MalformedMessageError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import (
    Committee,
    HolderIdentity,
    dump_committee,
    load_committee,
)
from tests.looped import looped

RANDOM = random.Random(1)
IDENTITIES = tuple(
    HolderSecrets.generate(RANDOM.randbytes).identity(
        index=index, name=f"holder {index}", address=f"holder-{index}.example:7443"
    )
    for index in range(1, 6)
)
COMMITTEE = Committee(threshold=3, holders=IDENTITIES)


def document() -> dict[str, object]:
    loaded = json.loads(dump_committee(COMMITTEE))
    assert isinstance(loaded, dict)
    return loaded


def test_a_committee_survives_being_written() -> None:
    assert load_committee(dump_committee(COMMITTEE)) == COMMITTEE


def test_people_may_lay_the_file_out() -> None:
    pretty = json.dumps(document(), indent=4).encode()
    assert load_committee(pretty).sha256 == COMMITTEE.sha256
    assert dump_committee(load_committee(pretty)) == dump_committee(COMMITTEE)


def test_a_holder_may_move_without_a_new_committee() -> None:
    moved = dataclasses.replace(IDENTITIES[0], address="elsewhere:1")
    assert Committee(threshold=3, holders=(moved, *IDENTITIES[1:])).sha256 == COMMITTEE.sha256


@pytest.mark.parametrize("change", ["name", "signing_key", "sealing_key"])
def test_everything_else_is_hashed(change: str) -> None:
    other = HolderSecrets.generate(RANDOM.randbytes).identity(index=1, name="other", address="")
    changed = dataclasses.replace(IDENTITIES[0], **{change: getattr(other, change)})
    assert Committee(threshold=3, holders=(changed, *IDENTITIES[1:])).sha256 != COMMITTEE.sha256
    assert Committee(threshold=2, holders=IDENTITIES).sha256 != COMMITTEE.sha256


def test_a_holder_is_found_by_its_index() -> None:
    assert COMMITTEE.identity(4) is IDENTITIES[3]
    for index in (0, 6, -1):
        with pytest.raises(MalformedMessageError, match="1 <= holder <= 5"):
            COMMITTEE.identity(index)


@looped(
    "threshold, holders",
    [
        (1, IDENTITIES),
        (6, IDENTITIES),
        (2, IDENTITIES[:1]),
        (2, IDENTITIES[1:]),
        (2, (IDENTITIES[1], IDENTITIES[0])),
        (2, (IDENTITIES[0], dataclasses.replace(IDENTITIES[0], index=2))),
        (2, (IDENTITIES[0], dataclasses.replace(IDENTITIES[1], name="holder 1"))),
    ],
)
def test_a_committee_is_complete_and_its_holders_differ(
    threshold: int, holders: tuple[HolderIdentity, ...]
) -> None:
    with pytest.raises(MalformedMessageError):
        Committee(threshold=threshold, holders=holders)


@looped(
    "change",
    [
        {"index": 0},
        {"index": 8},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 65},
        {"address": "x" * 257},
        {"signing_key": b"short"},
        {"sealing_key": bytes(1215)},
    ],
)
def test_an_identity_is_well_formed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessageError):
        dataclasses.replace(IDENTITIES[0], **change)


@looped(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b" " * 65_537,
        json.dumps(document() | {"version": 2}).encode(),
        json.dumps(document() | {"version": True}).encode(),
        json.dumps(document() | {"threshold": "3"}).encode(),
        json.dumps(document() | {"more": 1}).encode(),
        json.dumps(document() | {"holders": {}}).encode(),
        json.dumps(document() | {"holders": [1, 2]}).encode(),
        dump_committee(COMMITTEE).replace(b'"name":"holder 1"', b'"name":1'),
        dump_committee(COMMITTEE).replace(b'"signing_key":"', b'"signing_key":"*', 1),
    ],
)
def test_what_is_no_committee_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        load_committee(data)
