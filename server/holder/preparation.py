"""Opens a share holder's settings: whatever it needs before it touches its folder.

`fedagg config check` does exactly this and stops; a holder goes on with what comes out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from security.certificates.credentials import Credentials
from security.errors import SecurityError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceAuthority
from security.shared_round.terms.committee import Committee, HolderIdentity, load_committee
from server.config import ConfigError
from server.config.findings import Findings
from server.config.holder_config import HolderConfig
from server.config.host import check_host
from server.config.pem_files import read_certificates, read_pair
from server.errors import StoreUnavailable
from server.holder.storage.holder_storage import owner_of
from server.holder.storage.membership import HolderSelf


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderTls:
    """What a holder serves TLS with.

    Attributes:
        credentials: its own.
        client_ca: PEM, authorities of its callers' certificates; None: everyone is believed.
    """

    credentials: Credentials
    client_ca: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedHolder:
    """What a holder's settings and files come to.

    Attributes:
        me: the member of the committee.
        tls: None: the holder serves without.
    """

    me: HolderSelf
    tls: HolderTls | None = field(repr=False)


def prepare_holder(
    config: HolderConfig,
    *,
    now_s: Callable[[], float] = time.time,
    problems: Sequence[str] = (),
) -> PreparedHolder:
    """Read every file that the settings name, and hold them against each other.

    Args:
        config: settings.
        now_s: the clock that device certificates will be held against, seconds since the Unix
            epoch.
        problems: those of the settings; what rests on them is skipped.

    Raises:
        ConfigError: naming these, and everything that the holder, or every round, would refuse.
    """
    findings, tls, me = Findings(problems), None, None
    with findings.skipping():
        check_host(config, findings)
    with findings.skipping():
        tls = _tls(config, findings)
    with findings.skipping():
        me = _me(config, findings, now_s)
    if me is None:
        raise ConfigError(*findings.problems)
    findings.refuse()
    return PreparedHolder(me=me, tls=tls)


def _me(config: HolderConfig, findings: Findings, now_s: Callable[[], float]) -> HolderSelf | None:
    section = config.holder
    committee = _committee(config, findings)
    secrets = _secrets(config, findings)
    authority = None
    pem = findings.read("holder.device-ca", section.device_ca)
    if pem is not None:
        with findings.telling(f"holder.device-ca: {section.device_ca}", SecurityError):
            authority = DeviceAuthority(pem)
    identity = None if committee is None else _identity(config, committee, findings)
    if identity is not None and secrets is not None and not secrets.owns(identity):
        problem = f"{section.keys}: holds other keys than holder {section.index} has in"
        findings.add("holder.keys", f"{problem} {section.committee}")
    if committee is not None:
        _check_folder(config, committee, findings)
    if committee is None or secrets is None or authority is None:
        return None
    return HolderSelf(
        index=section.index,
        secrets=secrets,
        committee=committee,
        authority=authority,
        now_s=now_s,
    )


def _committee(config: HolderConfig, findings: Findings) -> Committee | None:
    path = config.holder.committee
    data = findings.read("holder.committee", path)
    if data is None:
        return None
    committee = None
    with findings.telling(f"holder.committee: {path}", SecurityError):
        committee = load_committee(data)
    if committee is not None and committee.threshold < config.policy.min_threshold:
        problem = f"{config.policy.min_threshold} must not exceed the {committee.threshold} of"
        findings.add("policy.min-threshold", f"{problem} {path}, or every round is refused")
    return committee


def _secrets(config: HolderConfig, findings: Findings) -> HolderSecrets | None:
    data = findings.read("holder.keys", config.holder.keys)
    if data is None:
        return None
    with findings.telling(f"holder.keys: {config.holder.keys}", SecurityError):
        return HolderSecrets.from_json(data)
    return None


def _identity(
    config: HolderConfig, committee: Committee, findings: Findings
) -> HolderIdentity | None:
    index, most = config.holder.index, len(committee.holders)
    if index <= most:
        return committee.identity(index)
    findings.add("holder.index", f"{index} must be in 1..{most}: so many are in the committee")
    return None


def _check_folder(config: HolderConfig, committee: Committee, findings: Findings) -> None:
    """Refuse a folder of another holder or committee: what it promised there would be forgotten."""
    folder = config.holder.data_dir
    with findings.telling("holder.data-dir", StoreUnavailable):
        owner = owner_of(folder)
        if owner is not None and owner != (committee.sha256, config.holder.index):
            problem = f"{folder}: belongs to holder {owner[1]} of committee {owner[0].hex()}"
            findings.add("holder.data-dir", problem)


def _tls(config: HolderConfig, findings: Findings) -> HolderTls | None:
    tls, now_s = config.tls, time.time()
    if tls.certificate is None or tls.private_key is None:
        return None
    pair = read_pair(
        ("tls.certificate", tls.certificate),
        ("tls.private-key", tls.private_key),
        findings,
        now_s=now_s,
    )
    authorities = None
    if tls.client_ca is not None:
        authorities = read_certificates(("tls.client-ca", tls.client_ca), findings, now_s=now_s)
    if pair is None:
        return None
    return HolderTls(credentials=pair, client_ca=None if authorities is None else authorities[0])
