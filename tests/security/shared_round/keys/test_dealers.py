"""Names and signatures of holders that deal noise."""

from collections.abc import Callable

import pytest

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.certificates.device_id import check_certified_id
from security.errors import BadHeaderSignatureError, CredentialError, MalformedMessageError
from security.shared_round.keys.dealers import DealerSigner, verify_dealer
from security.shared_round.terms.committee import dealer_id, dealer_of, is_dealer
from tests.looped import looped
from tests.security.shared_round.sealed_round import AUTHORITY, COMMITTEE, HOLDERS, NOW_S, PHONE

SIGNER = DealerSigner(holder=2, secrets=HOLDERS[1])


def header(name: str = "noise:2") -> pb.SharedHeader:
    return pb.SharedHeader(params_sha256=b"p" * 32, device_id=name)


def test_no_certificate_can_hold_a_dealers_name() -> None:
    for holder in range(1, 8):
        assert is_dealer(dealer_id(holder))
        with pytest.raises(CredentialError):
            check_certified_id(dealer_id(holder))


@looped(
    "name, holder",
    [
        ("noise:1", 1),
        ("noise:7", 7),
        ("noise:0", 0),
        ("noise:8", 0),
        ("noise:11", 0),
        ("noise:1 ", 0),
        ("noise:", 0),
        ("noise", 0),
        ("anoise:1", 0),
        ("noise:1\n", 0),
    ],
)
def test_a_name_tells_its_holder(name: str, holder: int) -> None:
    assert dealer_of(name) == holder


def test_a_holder_proves_its_noise_with_the_committees_key() -> None:
    signed = SIGNER.sign_header(header())
    assert signed == SIGNER.sign_header(header())
    assert signed.certificate == b""
    verified = verify_dealer(signed, COMMITTEE)
    assert (verified.device_id, verified.header) == ("noise:2", header())


@pytest.mark.parametrize(
    "signed",
    [
        SIGNER.sign_header(header("noise:1")),
        SIGNER.sign_header(header("noise:6")),
        SIGNER.sign_header(header("phone-1")),
        PHONE.sign_header(header()),
        pb.SignedHeader(header=header().SerializeToString(), signature=bytes(64)),
    ],
    ids=["another holder's", "no holder's", "a device's", "by a device", "unsigned"],
)
def test_noise_that_its_holder_did_not_sign_is_refused(signed: pb.SignedHeader) -> None:
    with pytest.raises(BadHeaderSignatureError):
        verify_dealer(signed, COMMITTEE)


def test_what_is_no_header_is_refused() -> None:
    signed = SIGNER.sign_header(header())
    with pytest.raises(MalformedMessageError):
        verify_dealer(pb.SignedHeader(header=b"\xff", signature=signed.signature), COMMITTEE)


def test_a_dealers_header_passes_for_no_devices() -> None:
    with pytest.raises(BadHeaderSignatureError):
        AUTHORITY.verify(SIGNER.sign_header(header()), now_s=NOW_S)


@pytest.mark.parametrize("show", [repr, str])
def test_a_signer_shows_no_secret(show: Callable[[object], str]) -> None:
    assert "secrets" not in show(SIGNER)
