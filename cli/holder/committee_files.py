"""The files of a whole committee, written in one place: keys, certificates, configurations.

For trying things out: whoever writes them could keep every key, so such holders protect nobody's
privacy. Real holders make their keys themselves: `fedagg share-holder keys`.

    committee.json            the committee, for everybody
    ca.pem                    authority of the devices' certificates, for the holders
    identities/               certificates and keys of devices; see `simulation.fleet.identities`
    holder-1/ ...             keys.json, holder.toml and, later, data/ of one holder
"""

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import Committee, dump_committee
from server.config.durability import Durability
from simulation.fleet.identities import make_identities

HOLDER: Final = "holder-"
COMMITTEE_FILE: Final = "committee.json"
IDENTITIES: Final = "identities"
HOLDER_CONFIG: Final = "holder.toml"
CERTIFICATE_LIFE_S: Final = 365 * 86_400.0

_AUTHORITY_FILE: Final = "ca.pem"
_OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteePlan:
    """A committee to write down.

    Attributes:
        threshold: shares that open a sum.
        addresses: host:port where each holder is called, in holder order.
        listen: host:port where each listens; empty: the addresses.
        min_members: fewest updates that a holder lets into a sum.
        min_group_size: fewest in one of several sums.
        durability: what a holder's receipts survive.
        http, metrics: host:port of each holder's /ready and of its /metrics; empty: none.
    """

    threshold: int
    addresses: Sequence[str]
    listen: Sequence[str] = ()
    min_members: int = 2
    min_group_size: int = 2
    durability: Durability = Durability.PROCESS
    http: str = ""
    metrics: str = ""


def write_committee(plan: CommitteePlan, folder: Path, device_ids: Iterable[str]) -> None:
    """Write everything that the holders and the devices need.

    Args:
        plan: which committee.
        folder: made where it is missing; keys in it are replaced.
        device_ids: devices that get a certificate.

    Raises:
        SecurityError: if the plan makes no committee.
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    secrets = [HolderSecrets.generate(os.urandom) for _ in plan.addresses]
    committee = Committee(
        threshold=plan.threshold,
        holders=tuple(
            one.identity(index=index, name=holder_name(index), address=address)
            for index, (one, address) in enumerate(
                zip(secrets, plan.addresses, strict=True), start=1
            )
        ),
    )
    authority = make_identities(
        folder / IDENTITIES, device_ids, now_s=time.time(), valid_for_s=CERTIFICATE_LIFE_S
    )
    shutil.copyfile(authority, folder / _AUTHORITY_FILE)
    for index, one in enumerate(secrets, start=1):
        holder = folder / holder_name(index)
        holder.mkdir(exist_ok=True)
        keys = holder / "keys.json"
        # A run that was cut off before the committee was there is done again.
        keys.unlink(missing_ok=True)
        keys.touch(mode=_OWNER_ONLY)
        keys.write_bytes(one.to_json())
        (holder / HOLDER_CONFIG).write_text(_toml(plan, folder, index), encoding="utf-8")
    # Last: where it is, everything is.
    (folder / COMMITTEE_FILE).write_bytes(dump_committee(committee))


def holder_name(index: int) -> str:
    """Return the name of a holder, and of its folder and process."""
    return f"{HOLDER}{index}"


def _toml(plan: CommitteePlan, folder: Path, index: int) -> str:
    holder = folder / holder_name(index)
    listen = (plan.listen or plan.addresses)[index - 1]
    return (
        f'[holder]\nindex = {index}\ncommittee = "{folder / COMMITTEE_FILE}"\n'
        f'keys = "{holder / "keys.json"}"\ndevice-ca = "{folder / _AUTHORITY_FILE}"\n'
        f'data-dir = "{holder / "data"}"\ndurability = "{plan.durability.value}"\n'
        f'[listen]\ngrpc = "{listen}"\nhttp = "{plan.http}"\nmetrics = "{plan.metrics}"\n'
        f"[tls]\ninsecure = true\n"
        f"[policy]\nmin-members = {plan.min_members}\nmin-group-size = {plan.min_group_size}\n"
    )
