"""Share holders with real keys: what they open of a device's bundle, and the update they find."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config import ClientConfig, SharingConfig
from client.transport.messages import Assignment
from client.transport.server_messages import check_in_answer
from security.secret_sharing.cnf import conversion_scale
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import reconstruct
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceAuthority, VerifiedHeader
from security.shared_round.terms.committee import Committee, dump_committee
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.bundle import check_structure, parse_prefix
from security.shared_round.update.pieces import BodyCheck, SharePieces, open_frame
from simulation.fleet.identities import identity_files, make_identities
from tests.client.federation import DEVICE, TASK, ScriptedFederation

NOW_S = 1_750_000_000.0
CLIP_NORM = 1.0


@dataclass
class Holders:
    """A committee, its secrets, and the folder with its file and the device's certificate."""

    folder: Path
    secrets: tuple[HolderSecrets, ...]
    committee: Committee
    authority: DeviceAuthority

    @property
    def committee_file(self) -> Path:
        return self.folder / "committee.json"

    def sharing(
        self,
        *,
        required: bool = True,
        min_threshold: int = 2,
        min_quorum: int | None = None,
        min_members: int = 2,
        require_checks: Checks = Checks.SUM,
        min_mask_scale: int = 3,
        min_noise_multiplier: float = 0.0,
        max_staleness: int | None = None,
    ) -> SharingConfig:
        files = identity_files(self.folder, DEVICE)
        return SharingConfig(
            committee=self.committee_file,
            certificate=files.certificate,
            private_key=files.private_key,
            required=required,
            min_threshold=min_threshold,
            min_quorum=min_quorum,
            min_members=min_members,
            require_checks=require_checks,
            min_mask_scale=min_mask_scale,
            min_noise_multiplier=min_noise_multiplier,
            max_staleness=max_staleness,
        )

    def plan(self, script: ScriptedFederation, **changes: object) -> RoundParameters:
        """Plan the parameters of the script's round."""
        facts: dict[str, object] = {
            "task": TASK,
            "round": script.round,
            "base_version": script.model_version,
            "model_sha256": script.sha256,
            "committee_sha256": self.committee.sha256,
            "threshold": self.committee.threshold,
            "holders": len(self.committee.holders),
            "dim": script.dim,
            "clip_norm": CLIP_NORM,
            "min_members": 2,
            "max_members": 10,
            "format": ShareFormat.CNF_SEEDED,
            "checks": Checks.NORM,
        }
        plan = RoundPlan(**{**facts, **changes})  # type: ignore[arg-type]  # by name, per test
        return plan_parameters(plan)

    def share(self, script: ScriptedFederation, **changes: object) -> RoundParameters:
        """Make the script's round a shared one."""
        params = self.plan(script, **changes)
        script.clipping_norm = CLIP_NORM
        script.shared_parameters = params.to_bytes()
        return params

    def pieces(
        self, params: RoundParameters, bundle: bytes, holder: int, *, device_id: str = DEVICE
    ) -> SharePieces:
        """Open a holder's share of a bundle, with every check that the holder makes."""
        prefix, prefix_bytes = parse_prefix(bundle)
        index = check_structure(
            params, prefix, prefix_bytes=prefix_bytes, total_bytes=len(bundle), device_id=device_id
        )
        header = self.authority.verify(prefix.header, now_s=NOW_S)
        frame = prefix.frames[holder - 1]
        keys = open_frame(params, self.secrets[holder - 1], holder, header, frame)
        chunks = [bundle[at : at + length] for at, length in index.extents(holder)]
        if chunks:
            check = BodyCheck(params, keys, header, holder)
            for chunk in chunks:
                check.feed(chunk)
            check.finish()
        return SharePieces(params, keys, holder, chunks.__getitem__ if chunks else None)

    def header(self, bundle: bytes) -> VerifiedHeader:
        """Read the header of a bundle."""
        prefix, _ = parse_prefix(bundle)
        return self.authority.verify(prefix.header, now_s=NOW_S)

    def update(
        self, params: RoundParameters, bundle: bytes, *holders: int, device_id: str = DEVICE
    ) -> NDArray[np.float64]:
        """Open the update of one bundle from the shares of these holders."""
        shares: dict[int, Words] = {}
        for holder in holders:
            pieces = self.pieces(params, bundle, holder, device_id=device_id)
            shares[holder] = np.concatenate([words.copy() for _, words in pieces.chunks()])
        is_cnf = params.format is ShareFormat.CNF_SEEDED
        opened = reconstruct(
            params.field,
            shares,
            degree=params.threshold - 1,
            scale=conversion_scale(params.scheme) if is_cnf else 1,
        )
        integers = centered(opened.values[: params.dim], params.field)
        return integers / 2.0**params.fraction_bits


def make_holders(
    folder: Path,
    *,
    threshold: int = 2,
    num_holders: int = 3,
    device_ids: Sequence[str] = (DEVICE,),
) -> Holders:
    """Make a committee and certificates for devices in `folder`."""
    draw = random.Random(num_holders).randbytes
    secrets = tuple(HolderSecrets.generate(draw) for _ in range(num_holders))
    committee = Committee(
        threshold=threshold,
        holders=tuple(
            holder.identity(index=index, name=f"holder {index}", address="")
            for index, holder in enumerate(secrets, start=1)
        ),
    )
    authority_file = make_identities(folder, device_ids, now_s=NOW_S)
    (folder / "committee.json").write_bytes(dump_committee(committee))
    return Holders(
        folder=folder,
        secrets=secrets,
        committee=committee,
        authority=DeviceAuthority(authority_file.read_bytes()),
    )


def config_of(sharing: SharingConfig, device_id: str = DEVICE) -> ClientConfig:
    return ClientConfig(
        servers=("127.0.0.1:1",), task=TASK, device_id=device_id, insecure=True, sharing=sharing
    )


def assigned(script: ScriptedFederation, **changes: object) -> Assignment:
    answer = check_in_answer(script.assignment())
    assert isinstance(answer, Assignment)
    return dataclasses.replace(answer, **changes)  # type: ignore[arg-type]  # by name, per test


def shared_assignment(holders: Holders, **changes: object) -> Assignment:
    script = ScriptedFederation()
    holders.share(script, **changes)
    return assigned(script)
