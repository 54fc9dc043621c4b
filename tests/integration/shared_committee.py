"""A committee of real share holders on the loopback interface, and devices that seal for it."""

import functools
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from security.certificates.credentials import (
    create_authority,
    issue_device_certificate,
    private_key_pem,
)
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceSigner
from security.shared_round.terms.committee import Committee, dump_committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from server.config import parse_holder_config
from server.holder.app import HolderServer, build_holder

NOW_S: Final = 1_800_000_000.0
ISSUER: Final = create_authority(name="devices", now_s=NOW_S, valid_for_s=1e6)

Vector = NDArray[np.float32]


@functools.cache
def signer(device_id: str) -> DeviceSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    certified = issue_device_certificate(
        ISSUER, device_id=device_id, key=key.public_key(), now_s=NOW_S, valid_for_s=1e5
    )
    return DeviceSigner.from_pem(certified.chain_pem, private_key_pem(key))


class Holders:
    """The processes of one committee, as far as they share an event loop.

    Attributes:
        committee: with the addresses where they answer.
        secrets: of the holders, in their order.
        path: the committee's file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threshold: int,
        holders: int,
        policy: Mapping[str, object] | None = None,
        limits: Mapping[str, object] | None = None,
        tls: Mapping[str, object] | None = None,
    ) -> None:
        draw = random.Random(10 * threshold + holders).randbytes
        self.secrets = [HolderSecrets.generate(draw) for _ in range(holders)]
        self._folder = folder
        self._policy = {
            "min-members": 2,
            "min-group-size": 2,
            "min-sketch-dim": 64,
            **(policy or {}),
        }
        self._limits = dict(limits or {})
        self._tls = dict(tls or {"insecure": True})
        self._servers: dict[int, HolderServer] = {}
        identities = tuple(
            secrets.identity(index=index, name=f"holder {index}", address="127.0.0.1:0")
            for index, secrets in enumerate(self.secrets, start=1)
        )
        self.committee = Committee(threshold=threshold, holders=identities)
        self.path = folder / "committee.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(dump_committee(self.committee))
        (folder / "ca.pem").write_bytes(ISSUER.certificate_pem)
        for index, secrets in enumerate(self.secrets, start=1):
            (folder / f"keys-{index}.json").write_bytes(secrets.to_json())

    async def start(self, index: int) -> None:
        """Start a holder; the next time on the port it had before."""
        identity = self.committee.identity(index)
        server = build_holder(
            parse_holder_config(
                {
                    "holder": {
                        "index": index,
                        "committee": str(self.path),
                        "keys": str(self._folder / f"keys-{index}.json"),
                        "device-ca": str(self._folder / "ca.pem"),
                        "data-dir": str(self._folder / f"holder-{index}"),
                        "durability": "process",
                    },
                    "listen": {"grpc": identity.address},
                    "tls": self._tls,
                    "policy": self._policy,
                    "limits": self._limits,
                },
                {},
            ),
            now_s=lambda: NOW_S,
        )
        await server.start()
        self._servers[index] = server
        found = list(self.committee.holders)
        found[index - 1] = replace(identity, address=server.address)
        self.committee = replace(self.committee, holders=tuple(found))

    async def stop(self, index: int) -> None:
        await self._servers.pop(index).stop(0)

    async def stop_all(self) -> None:
        for index in list(self._servers):
            await self.stop(index)

    def sealed(
        self,
        params: RoundParameters,
        device_id: str,
        vector: Vector,
        *,
        model_version: int | None = None,
    ) -> bytes:
        """A device's bundle for a round."""
        update = SealedUpdate(
            params,
            self.committee,
            signer(device_id),
            vector,
            device_id=device_id,
            model_version=params.base_version if model_version is None else model_version,
        )
        return update[:]

    def stored_bytes(self) -> dict[str, bytes]:
        """Everything that all holders keep in files."""
        paths = (path for path in sorted(self._folder.glob("holder-*/**/*")) if path.is_file())
        return {str(path.relative_to(self._folder)): path.read_bytes() for path in paths}


@asynccontextmanager
async def running(
    folder: Path, *, threshold: int, holders: int, **settings: Mapping[str, object] | None
) -> AsyncIterator[Holders]:
    """A whole committee until the block ends; its file names where it answers.

    Args:
        folder: of all of them.
        threshold: shares that open a sum.
        holders: how many there are.
        settings: of every holder, by section: policy, limits, tls.
    """
    found = Holders(folder, threshold=threshold, holders=holders, **settings)
    try:
        for index in range(1, holders + 1):
            await found.start(index)
        found.path.write_bytes(dump_committee(found.committee))
        yield found
    finally:
        await found.stop_all()


def update_of(device_id: str, dim: int, *, norm: float = 0.5) -> Vector:
    """A device's update; another one for every device."""
    values = np.random.default_rng(sum(device_id.encode())).normal(size=dim)
    return (norm * values / np.linalg.norm(values)).astype(np.float32)


def mean_of(updates: Mapping[str, Vector], weights: Mapping[str, int] | None = None) -> Vector:
    """What a round must publish, from the definition of the encoding: 20 fractional bits."""
    scale = 2.0**20
    counts = weights or dict.fromkeys(updates, 1)
    total = sum(
        counts[name] * np.rint(vector.astype(np.float64) * scale).astype(np.int64)
        for name, vector in updates.items()
    )
    mean: Vector = (np.asarray(total) / scale / sum(counts.values())).astype(np.float32)
    return mean
