"""Certificates for simulated devices, from an authority of their own.

A folder of identities holds, PEM each:

    ca.pem                  the authority's certificate: what share holders and servers trust
    device-0007.pem         a device's certificate, then the authority's
    device-0007-key.pem     its private key

The authority's key is written nowhere: no further device can join a population.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from security.certificates.credentials import (
    create_authority,
    issue_device_certificate,
    private_key_pem,
)

AUTHORITY_FILE: Final = "ca.pem"

_AUTHORITY_NAME: Final = "simulated devices"
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """Where a device's certificate and key are."""

    certificate: Path
    private_key: Path


def identity_files(folder: Path, device_id: str) -> IdentityFiles:
    """Return where in a folder of identities those of a device are."""
    return IdentityFiles(
        certificate=folder / f"{device_id}.pem", private_key=folder / f"{device_id}-key.pem"
    )


def make_identities(
    folder: Path, device_ids: Iterable[str], *, now_s: float, valid_for_s: float = _DAY_S
) -> Path:
    """Make an authority and a certificate for each device; keys are ECDSA P-256.

    Args:
        folder: made if it is missing; files in it are overwritten.
        device_ids: 1 to 64 characters of [A-Za-z0-9_.-] each.
        now_s: seconds since the Unix epoch.
        valid_for_s: lifetime of the certificates in seconds, > 0.

    Returns:
        The file with the authority's certificate.

    Raises:
        CredentialError: if a device id cannot be certified, or a time is out of range.

    Cost: about 0.3 ms a device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = create_authority(name=_AUTHORITY_NAME, now_s=now_s, valid_for_s=valid_for_s)
    for device_id in device_ids:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = issue_device_certificate(
            authority,
            device_id=device_id,
            key=key.public_key(),
            now_s=now_s,
            valid_for_s=valid_for_s,
        )
        files = identity_files(folder, device_id)
        files.certificate.write_bytes(issued.chain_pem)
        # Nobody else may read it at any time, so it is created that way.
        files.private_key.unlink(missing_ok=True)
        files.private_key.touch(mode=0o600)
        files.private_key.write_bytes(private_key_pem(key))
    path = folder / AUTHORITY_FILE
    path.write_bytes(authority.certificate_pem)
    return path
