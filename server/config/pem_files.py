"""Certificates and keys that settings name, read and held against each other."""

from pathlib import Path

from cryptography import x509

from security.certificates.credentials import Credentials
from security.certificates.pem_checks import belongs_to, require_certificates, require_private_key
from security.errors import CredentialError
from server.config.findings import Findings

Named = tuple[str, Path]  # a setting, and the file that it names


def read_pair(
    certificate: Named, private_key: Named, findings: Findings, *, now_s: float
) -> Credentials | None:
    """Read a certificate, or its chain, and its key.

    Args:
        certificate, private_key: settings and files.
        findings: told what is wrong.
        now_s: seconds since the Unix epoch, when the certificate must be valid.

    Returns:
        Both; None where they cannot be used.
    """
    chain = read_certificates(certificate, findings, now_s=now_s)
    setting, path = private_key
    pem, public_key = findings.read(setting, path), None
    if pem is not None:
        with findings.telling(f"{setting}: {path}", CredentialError):
            public_key = require_private_key(pem)
    if chain is None or pem is None or public_key is None:
        return None
    if not belongs_to(public_key, chain[1][0]):
        findings.add(setting, f"{path}: is not the key of {certificate[0]}={certificate[1]}")
        return None
    return Credentials(certificate_pem=chain[0], private_key_pem=pem)


def read_certificates(
    named: Named, findings: Findings, *, now_s: float
) -> tuple[bytes, list[x509.Certificate]] | None:
    """Read one or more certificates, of which the first must be valid now.

    Returns:
        The file and what is in it; None where it cannot be used.
    """
    setting, path = named
    pem = findings.read(setting, path)
    if pem is None:
        return None
    with findings.telling(f"{setting}: {path}", CredentialError):
        return pem, require_certificates(pem, now_s=now_s)
    return None
