"""Audit entries: what may be in one, and the form of its line."""

import dataclasses
import hashlib
import hmac
import json
from typing import cast

import numpy as np
import pytest

from monitoring.audit_entry import GENESIS_HASH, AuditEntry, AuditError, AuditKey, render_line
from tests.looped import looped

KEY = AuditKey(bytes(range(32)))
ENTRY = AuditEntry(
    task="digits",
    round_id=3,
    decision="published",
    reason="",
    model_version=4,
    accepted=2,
    rejected=1,
    device_ids=("phone-b", "phone-a"),
    privacy_spent=None,
    at_ms=1_700_000_000_123,
    details={"rule": "krum", "norm": 0.5, "excluded": ("x",)},
)
VECTOR = np.ones(3, dtype=np.float32)


def test_line_is_canonical_json_that_anybody_can_check() -> None:
    line = render_line(ENTRY, key=KEY, prev_hash=GENESIS_HASH)
    content = json.loads(line)
    assert content["round_id"] == 3
    assert content["privacy_spent"] is None
    assert content["at"] == "2023-11-14T22:13:20.123Z"
    assert content["prev_hash"] == GENESIS_HASH
    # What docs tell an auditor to do, with nothing of ours.
    mac, line_hash = content.pop("mac"), content.pop("hash")
    bare = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(bare).hexdigest() == line_hash
    message = b"fedagg audit line\x00" + line_hash.encode()
    assert hmac.new(KEY.secret, message, hashlib.sha256).hexdigest() == mac
    assert line.count(b"\n") == 1
    assert line.isascii()


def test_device_ids_are_pseudonyms_in_an_order_of_their_own() -> None:
    line = render_line(ENTRY, key=KEY, prev_hash=GENESIS_HASH)
    assert b"phone" not in line
    ids = json.loads(line)["device_ids"]
    assert ids == sorted(KEY.pseudonym(name) for name in ENTRY.device_ids)
    assert all(len(bytes.fromhex(name)) == 8 for name in ids)


def test_pseudonyms_are_stable_in_one_installation_and_unlinkable_to_another() -> None:
    assert KEY.pseudonym("phone-a") == AuditKey(bytes(range(32))).pseudonym("phone-a")
    assert KEY.pseudonym("phone-a") != KEY.pseudonym("phone-b")
    assert KEY.pseudonym("phone-a") != AuditKey(bytes(32)).pseudonym("phone-a")


def test_privacy_spent_is_told_as_numbers() -> None:
    entry = dataclasses.replace(ENTRY, privacy_spent={"epsilon": 1.5, "delta": 1e-5})
    content = json.loads(render_line(entry, key=KEY, prev_hash=GENESIS_HASH))
    assert content["privacy_spent"] == {"epsilon": 1.5, "delta": 1e-5}


@looped(
    "details",
    [
        {"update": VECTOR},
        {"update": VECTOR.tobytes()},
        {"update": VECTOR.tolist()},
        {"update": (1.0, 2.0)},
        {"update": {"layer": 1.0}},
        {"update": np.float32(1)},
        {"update": float("nan")},
        {"update": "x" * 1_001},
        {str(index): 1.0 for index in range(33)},
    ],
)
def test_an_update_cannot_be_logged(details: object) -> None:
    with pytest.raises(AuditError) as caught:
        dataclasses.replace(ENTRY, details=cast("dict[str, float]", details))
    assert "1.0" not in str(caught.value)


@looped(
    "name, value",
    [
        ("round_id", -1),
        ("round_id", 1.0),
        ("accepted", True),
        ("rejected", np.int64(1)),
        ("model_version", "4"),
        ("task", b"digits"),
        ("device_ids", (7,)),
        ("privacy_spent", {"epsilon": "1"}),
        ("privacy_spent", {"epsilon": float("inf")}),
        ("privacy_spent", {"epsilon": True}),
    ],
)
def test_fields_are_checked(name: str, value: object) -> None:
    with pytest.raises(AuditError):
        dataclasses.replace(ENTRY, **{name: value})  # type: ignore[arg-type]  # that is the test


def test_the_key_is_not_shown() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
    with pytest.raises(AuditError, match="32 bytes"):
        AuditKey(b"short")
