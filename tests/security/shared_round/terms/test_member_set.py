"""Frozen sets and selections: their order and their hashes."""

import hashlib
import struct

import pytest

from security.errors import MalformedMessageError
from security.shared_round.terms.member_set import FrozenSet, Member, Selection, SelectionMode
from tests.looped import looped

PARAMS = hashlib.sha256(b"params").digest()


def member(name: str) -> Member:
    return Member(device_id=name, header_sha256=hashlib.sha256(name.encode()).digest())


def frozen(*names: str, attempt: int = 1) -> FrozenSet:
    members = tuple(member(name) for name in names)
    return FrozenSet(params_sha256=PARAMS, attempt=attempt, members=members)


def test_a_set_s_hash_is_the_one_written_down() -> None:
    text = b"fedagg/frozen-set/1\0" + PARAMS + struct.pack("<I", 2)
    for name in (b"a", b"bc"):
        text += struct.pack("<I", len(name)) + name + hashlib.sha256(name).digest()
    assert frozen("a", "bc", attempt=2).sha256 == hashlib.sha256(text).digest()


def noised(names: tuple[str, ...], dealers: tuple[str, ...]) -> FrozenSet:
    return FrozenSet(
        params_sha256=PARAMS,
        attempt=1,
        members=tuple(map(member, names)),
        dealers=tuple(map(member, dealers)),
    )


def test_a_noised_set_s_hash_is_the_one_written_down() -> None:
    text = b"fedagg/noised-frozen-set/1\0" + PARAMS + struct.pack("<2I", 1, 2)
    for name in (b"a", b"bc", b"noise:1", b"noise:3"):
        text += struct.pack("<I", len(name)) + name + hashlib.sha256(name).digest()
    found = noised(("a", "bc"), ("noise:1", "noise:3"))
    assert found.sha256 == hashlib.sha256(text).digest()
    assert noised(("a",), ()).sha256 == frozen("a").sha256


@pytest.mark.parametrize(
    ("names", "dealers"),
    [
        (("a", "noise:1"), ()),
        (("a", "noise:1"), ("noise:2",)),
        (("a",), ("b",)),
        (("a",), ("noise:2", "noise:1")),
        (("a",), ("noise:1", "noise:1")),
    ],
)
def test_noise_is_no_member_and_no_device_a_dealer(
    names: tuple[str, ...], dealers: tuple[str, ...]
) -> None:
    with pytest.raises(MalformedMessageError):
        noised(names, dealers)


def test_a_selection_s_hash_is_the_one_written_down() -> None:
    selection = Selection(
        set_sha256=PARAMS, mode=SelectionMode.DEGRADED_GROUPED, sums=((0, 4), (1, 2, 3))
    )
    text = b"fedagg/selection/1\0" + PARAMS + struct.pack("<9I", 2, 2, 2, 0, 4, 3, 1, 2, 3)
    assert selection.sha256 == hashlib.sha256(text).digest()
    assert selection.members == (0, 1, 2, 3, 4)


def test_every_part_of_a_set_changes_its_hash() -> None:
    other = Member(device_id="a", header_sha256=bytes(32))
    sets = [
        frozen("a", "b"),
        frozen("a", "b", attempt=2),
        frozen("a", "c"),
        frozen("a"),
        FrozenSet(params_sha256=bytes(32), attempt=1, members=(member("a"), member("b"))),
        FrozenSet(params_sha256=PARAMS, attempt=1, members=(other, member("b"))),
        noised(("a", "b"), ("noise:1",)),
        noised(("a", "b"), ("noise:2",)),
        noised(("a", "b"), ("noise:1", "noise:2")),
    ]
    assert len({one.sha256 for one in sets}) == len(sets)


@pytest.mark.parametrize("names", [(), ("b", "a"), ("a", "a")])
def test_members_out_of_order_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(MalformedMessageError, match="members"):
        frozen(*names)


@looped("sums", [(), ((),), ((1, 0),), ((0, 1), (1, 2)), ((0, 0),), ((-1, 2),)])
def test_sums_that_overlap_or_are_out_of_order_are_refused(
    sums: tuple[tuple[int, ...], ...],
) -> None:
    with pytest.raises(MalformedMessageError):
        Selection(set_sha256=PARAMS, mode=SelectionMode.CHECKED, sums=sums)


def test_a_member_has_a_name_and_a_hash() -> None:
    with pytest.raises(MalformedMessageError, match="device_id"):
        Member(device_id="", header_sha256=bytes(32))
    with pytest.raises(MalformedMessageError, match="32 bytes"):
        Member(device_id="a", header_sha256=bytes(31))


def test_positions_are_found_by_device() -> None:
    assert frozen("a", "b", "c").position("c") == 2
    with pytest.raises(KeyError):
        frozen("a").position("z")
