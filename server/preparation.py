"""Opens a coordinator's settings: whatever `serve` needs of them that no store is asked for.

`fedagg config check` does exactly this and stops; a coordinator goes on with what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from security.certificates.credentials import Credentials
from security.certificates.pem_checks import is_trusted, load_certificates
from security.certificates.signing_request import create_signing_request, sign_request
from security.errors import CredentialError
from server.config import EMBEDDED, ServerConfig
from server.config.findings import Findings
from server.config.host import check_folder, check_host
from server.config.pem_files import read_certificates, read_pair
from server.devices.enrollment_service import EnrollmentAuthority
from server.processes.thread_pool import Workers
from server.storage.blobs import BlobStore, blob_folder
from server.storage.redis_client import require_url
from server.task.preparation import PreparedTask, prepare_task

_NOBODY: Final = "check"  # a device id


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """What a coordinator serves TLS with.

    Attributes:
        credentials: its own.
        client_ca: PEM, authorities of the devices' certificates.
    """

    credentials: Credentials
    client_ca: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedServer:
    """What a coordinator's settings and files come to.

    Attributes:
        tasks: in the order of the configuration.
        tls: None: the device API is served without.
        authority: None: no device is enrolled.
    """

    tasks: tuple[PreparedTask, ...]
    tls: ServerTls | None = field(repr=False)
    authority: EnrollmentAuthority | None


def prepare_server(
    config: ServerConfig, *, accountants: Workers, now_s: float, problems: Sequence[str] = ()
) -> PreparedServer:
    """Read every file that the settings name, and find out what they come to.

    Args:
        config: settings.
        accountants: where accountants will run.
        now_s: seconds since the Unix epoch, when certificates must be valid.
        problems: those of the settings; what rests on them is skipped.

    Raises:
        ConfigError: naming these, and all that a coordinator or its first round would refuse.

    Cost: reads the models; of each private task a second or so more, to calibrate its noise.
    """
    findings, tls, authority = Findings(problems), None, None
    with findings.skipping():
        check_host(config, findings)
    with findings.skipping():
        _check_stores(config, findings)
    with findings.skipping():
        tls = _tls(config, findings, now_s)
    with findings.skipping():
        authority = _authority(config, findings, now_s)
    if tls is not None and authority is not None:
        _check_trust(tls, authority, findings)
    tasks: list[PreparedTask | None] = []
    with findings.skipping():
        tasks = [
            prepare_task(task, f"task[{number}].", findings, accountants=accountants, now_s=now_s)
            for number, task in enumerate(config.tasks, start=1)
        ]
    findings.refuse()
    return PreparedServer(
        tasks=tuple(task for task in tasks if task is not None), tls=tls, authority=authority
    )


def _check_stores(config: ServerConfig, findings: Findings) -> None:
    """Look whether clients of the stores can be made; neither is called."""
    if config.store.url != EMBEDDED:
        with findings.telling("store.url", ValueError):
            require_url(config.store.url)
    folder = blob_folder(config.blob_url)
    if folder is not None:
        check_folder("store.blobs", folder, findings)
        return
    try:
        BlobStore(config.blob_url, durability=config.store.durability).close()
    except (ValueError, ImportError, OSError) as error:
        findings.add("store.blobs", f"cannot be used here: {error}")


def _tls(config: ServerConfig, findings: Findings, now_s: float) -> ServerTls | None:
    tls = config.tls
    if not (tls.certificate and tls.private_key and tls.client_ca):
        return None
    pair = read_pair(
        ("tls.certificate", tls.certificate),
        ("tls.private-key", tls.private_key),
        findings,
        now_s=now_s,
    )
    authorities = read_certificates(("tls.client-ca", tls.client_ca), findings, now_s=now_s)
    if pair is None or authorities is None:
        return None
    return ServerTls(credentials=pair, client_ca=authorities[0])


def _authority(
    config: ServerConfig, findings: Findings, now_s: float
) -> EnrollmentAuthority | None:
    settings = config.enrollment
    if not (settings.ca_certificate and settings.ca_private_key and settings.token_key):
        return None
    named = ("enrollment.ca-certificate", settings.ca_certificate)
    pair = read_pair(
        named, ("enrollment.ca-private-key", settings.ca_private_key), findings, now_s=now_s
    )
    if pair is None:
        return None
    with findings.telling(f"{named[0]}: {named[1]}", CredentialError):
        # The only way to know that it can certify devices is to let it.
        request = create_signing_request(_NOBODY)
        sign_request(
            pair,
            request.csr_pem,
            device_id=_NOBODY,
            now_s=now_s,
            valid_for_s=settings.certificate_days * 86_400,
        )
    return EnrollmentAuthority(
        credentials=pair,
        token_key=settings.token_key.get_secret_value().encode(),
        certificate_lifetime_s=settings.certificate_days * 86_400,
    )


def _check_trust(tls: ServerTls, authority: EnrollmentAuthority, findings: Findings) -> None:
    """Look whether devices that enroll are let in afterwards."""
    mine = load_certificates(authority.credentials.certificate_pem)[0]
    if not is_trusted(mine, load_certificates(tls.client_ca)):
        problem = "is not trusted by tls.client-ca: devices that enroll would not be let in"
        findings.add("enrollment.ca-certificate", problem)
