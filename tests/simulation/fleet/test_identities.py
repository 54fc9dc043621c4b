"""Certificates of simulated devices: what share holders and servers make of them."""

import stat
from pathlib import Path

import pytest

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadHeaderSignatureError, CredentialError
from security.shared_round.keys.signing import DeviceAuthority, DeviceSigner
from simulation.fleet.identities import identity_files, make_identities

NOW_S = 1_750_000_000.0


def signed_by(folder: Path, device_id: str) -> pb.SignedHeader:
    files = identity_files(folder, device_id)
    signer = DeviceSigner.from_pem(files.certificate.read_bytes(), files.private_key.read_bytes())
    return signer.sign_header(pb.SharedHeader(device_id=device_id))


def test_every_device_signs_as_itself_and_the_authority_confirms_it(tmp_path: Path) -> None:
    authority = DeviceAuthority(
        make_identities(tmp_path, ["device-0000", "device-0001"], now_s=NOW_S).read_bytes()
    )
    for device_id in ("device-0000", "device-0001"):
        header = authority.verify(signed_by(tmp_path, device_id), now_s=NOW_S)
        assert header.device_id == device_id


def test_populations_do_not_know_each_other(tmp_path: Path) -> None:
    make_identities(tmp_path / "a", ["device-0000"], now_s=NOW_S)
    other = make_identities(tmp_path / "b", ["device-0000"], now_s=NOW_S)
    with pytest.raises(BadHeaderSignatureError):
        DeviceAuthority(other.read_bytes()).verify(
            signed_by(tmp_path / "a", "device-0000"), now_s=NOW_S
        )


def test_certificates_end_when_they_should(tmp_path: Path) -> None:
    authority = DeviceAuthority(
        make_identities(tmp_path, ["device-0000"], now_s=NOW_S, valid_for_s=60.0).read_bytes()
    )
    signed = signed_by(tmp_path, "device-0000")
    assert authority.verify(signed, now_s=NOW_S + 59.0).device_id == "device-0000"
    with pytest.raises(BadHeaderSignatureError):
        authority.verify(signed, now_s=NOW_S + 61.0)


def test_nobody_else_may_read_the_keys(tmp_path: Path) -> None:
    for _ in range(2):  # also where files of an earlier population lie
        make_identities(tmp_path, ["device-0000"], now_s=NOW_S)
        mode = identity_files(tmp_path, "device-0000").private_key.stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_a_name_that_no_certificate_can_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="a b"):
        make_identities(tmp_path, ["a b"], now_s=NOW_S)
