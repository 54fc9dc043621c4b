"""A holder's secrets: kept, shown to nobody, and good for sealing and signing."""

import dataclasses
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from security.errors import MalformedMessageError, SealBrokenError
from security.shared_round.keys.holder_keys import SEAL_OVERHEAD_BYTES, HolderSecrets, seal_to
from tests.looped import looped

SECRETS = HolderSecrets.generate(random.Random(1).randbytes)
OTHER = HolderSecrets.generate(random.Random(2).randbytes)
IDENTITY = SECRETS.identity(index=1, name="one", address="")


def test_secrets_survive_being_written() -> None:
    read = HolderSecrets.from_json(SECRETS.to_json())
    assert read == SECRETS
    assert read.identity(index=1, name="one", address="") == IDENTITY


def test_what_is_sealed_to_a_holder_opens_for_it() -> None:
    sealed = seal_to(IDENTITY, b"a seed", b"context")
    assert len(sealed) == len(b"a seed") + SEAL_OVERHEAD_BYTES
    assert SECRETS.unseal(sealed, b"context") == b"a seed"
    assert seal_to(IDENTITY, b"a seed", b"context") != sealed


@looped("at", [0, 1087, 1088, 1119, 1120, -1])
def test_a_changed_seal_does_not_open(at: int) -> None:
    sealed = bytearray(seal_to(IDENTITY, b"a seed", b"context"))
    sealed[at] ^= 1
    with pytest.raises(SealBrokenError):
        SECRETS.unseal(bytes(sealed), b"context")


def test_a_seal_opens_for_one_holder_in_one_context() -> None:
    sealed = seal_to(IDENTITY, b"a seed", b"context")
    for secrets, info, data in (
        (OTHER, b"context", sealed),
        (SECRETS, b"other", sealed),
        (SECRETS, b"context", sealed[:-1]),
        (SECRETS, b"context", sealed[:100]),
        (SECRETS, b"context", b""),
    ):
        with pytest.raises(SealBrokenError):
            secrets.unseal(data, info)


def test_a_seal_needs_both_of_the_holders_keys() -> None:
    sealed = seal_to(IDENTITY, b"a seed", b"context")
    for name in ("mlkem_seed", "x25519_seed"):
        half = dataclasses.replace(SECRETS, **{name: getattr(OTHER, name)})
        with pytest.raises(SealBrokenError):
            half.unseal(sealed, b"context")


def test_signatures_verify_with_the_identity() -> None:
    signature = SECRETS.sign(b"data")
    Ed25519PublicKey.from_public_bytes(IDENTITY.signing_key).verify(signature, b"data")


def test_a_holder_knows_its_own_identity() -> None:
    assert SECRETS.owns(IDENTITY)
    assert not OTHER.owns(IDENTITY)
    other = OTHER.identity(index=1, name="one", address="")
    assert not SECRETS.owns(dataclasses.replace(IDENTITY, sealing_key=other.sealing_key))


def test_secrets_do_not_show_themselves() -> None:
    shown = repr(SECRETS) + str(SECRETS)
    for name in ("signing_seed", "mlkem_seed", "x25519_seed", "dealing_seed"):
        assert repr(getattr(SECRETS, name)) not in shown
        assert getattr(SECRETS, name).hex() not in shown


@looped(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 1}',
        SECRETS.to_json().replace(b'"version": 1', b'"version": 2'),
        SECRETS.to_json().replace(b'"mlkem_seed": "', b'"mlkem_seed": "*'),
        SECRETS.to_json().replace(b'"mlkem_seed": "', b'"mlkem_seed": "AAAA'),
        SECRETS.to_json().replace(b'"mlkem_seed": "', b'"x": 1, "mlkem_seed": "'),
    ],
)
def test_what_are_no_secrets_is_refused_and_not_quoted(data: bytes) -> None:
    with pytest.raises(MalformedMessageError) as refused:
        HolderSecrets.from_json(data)
    assert refused.value.__cause__ is None
    assert len(str(refused.value)) < 100


def test_a_sealing_key_that_is_none_is_refused() -> None:
    broken = dataclasses.replace(IDENTITY, sealing_key=b"\xff" * 1216)
    with pytest.raises(MalformedMessageError, match="holder 1"):
        seal_to(broken, b"a seed", b"context")
