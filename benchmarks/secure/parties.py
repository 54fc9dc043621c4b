"""The parties of a shared round in one process: share holders with their keys, and devices.

The holders verify, check and sum as their processes do, without a network and a disk: what is left
is what sharing itself costs.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.certificates.credentials import (
    Credentials,
    create_authority,
    issue_device_certificate,
    private_key_pem,
)
from security.secret_sharing.field import Words
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.secret_sharing.threshold import Threshold
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.key_dealing import accept_keys, deal_keys
from security.shared_round.keys.signing import DeviceAuthority, DeviceSigner
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import (
    Coin,
    CoinShare,
    coin_commitments,
    coin_pieces,
    open_coin,
)
from security.shared_round.opening.openings import OpeningValues, compute_openings, sum_shares
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameter_facts import LEAST_SKETCH_DIM, Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.bundle import (
    BundleIndex,
    SealedUpdate,
    check_structure,
    parse_prefix,
)
from security.shared_round.update.pieces import BodyCheck, SharePieces, open_frame

Update = NDArray[np.float32]

THRESHOLD: Final = 3
HOLDERS: Final = 5
CLIP_NORM: Final = 1.0
READ_BYTES: Final = 512 << 10
"""What the device SDK sends at a time."""

_MODEL_VERSION: Final = 1
_VALID_FOR_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What kind of round.

    Attributes:
        format: a `ShareFormat`.
        checks: a `Checks`.
        dim: elements of an update.
        clients: updates in the round.
    """

    format: str
    checks: str
    dim: int
    clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """A (3, 5) committee whose holders have all of their keys, and the devices' authority."""

    committee: Committee
    secrets: Sequence[HolderSecrets]
    keys: Mapping[int, ReplicatedKeys]
    issuer: Credentials
    authority: DeviceAuthority

    @classmethod
    def meet(cls) -> Self:
        """Make all keys and deal the replicated ones."""
        secrets = [HolderSecrets.generate(os.urandom) for _ in range(HOLDERS)]
        identities = tuple(
            one.identity(index=index, name=f"holder-{index}", address="127.0.0.1:1")
            for index, one in enumerate(secrets, start=1)
        )
        committee = Committee(threshold=THRESHOLD, holders=identities)
        members = list(enumerate(secrets, start=1))
        dealt = [key for index, one in members for key in deal_keys(one, committee, index)]
        scheme = Threshold(threshold=THRESHOLD, holders=HOLDERS)
        issuer = create_authority(name="devices", now_s=time.time(), valid_for_s=_VALID_FOR_S)
        return cls(
            committee=committee,
            secrets=secrets,
            keys={
                index: ReplicatedKeys(scheme, index, accept_keys(one, committee, index, dealt))
                for index, one in members
            },
            issuer=issuer,
            authority=DeviceAuthority(issuer.certificate_pem),
        )

    def round_of(self, shape: Shape) -> RoundParameters:
        """Plan a round that takes exactly that many updates; the rule follows from the checks."""
        is_selecting = Checks(shape.checks) is Checks.DISTANCES
        return plan_parameters(
            RoundPlan(
                task="bench",
                round=1,
                base_version=_MODEL_VERSION,
                model_sha256="00" * 32,
                committee_sha256=self.committee.sha256,
                threshold=THRESHOLD,
                holders=HOLDERS,
                dim=shape.dim,
                clip_norm=CLIP_NORM,
                min_members=2,
                max_members=max(2, shape.clients),
                format=ShareFormat(shape.format),
                checks=Checks(shape.checks),
                sketch_dim=0 if Checks(shape.checks) is Checks.SUM else LEAST_SKETCH_DIM,
                rule="multi-krum" if is_selecting else "mean",
                num_byzantine=shape.clients // 5 if is_selecting else 0,
            )
        )

    def seal(self, params: RoundParameters, device_id: str, update: Update) -> SealedUpdate:
        """Share and seal an update, as a device does."""
        return SealedUpdate(
            params,
            self.committee,
            self.signer(device_id),
            update,
            device_id=device_id,
            model_version=_MODEL_VERSION,
        )

    def signer(self, device_id: str) -> DeviceSigner:
        """The certified key of a device; made once."""
        return _signer(self.issuer, device_id)


class Holder:
    """One share holder and the shares that it has taken in."""

    def __init__(self, parties: Parties, params: RoundParameters, index: int) -> None:
        self.index = index
        self.vectors: list[SharePieces] = []
        self._params = params
        self._secrets = parties.secrets[index - 1]
        self._keys = parties.keys[index]
        # Verified certificates are remembered: no holder may profit from another's memory.
        self._authority = DeviceAuthority(parties.issuer.certificate_pem)

    def take(self, prefix: pb.BundlePrefix, index: BundleIndex, bundle: bytes) -> None:
        """Verify a share as it is verified before it is stored, and keep it."""
        params, view = self._params, memoryview(bundle)
        header = self._authority.verify(prefix.header, now_s=time.time())
        frame = prefix.frames[self.index - 1]
        keys = open_frame(params, self._secrets, self.index, header, frame)
        chunks = [view[at : at + length] for at, length in index.extents(self.index)]
        if params.has_body(self.index):
            check = BodyCheck(params, keys, header, self.index)
            for chunk in chunks:
                check.feed(chunk)
            check.finish()
        body = _chunk_of(chunks) if chunks else None
        self.vectors.append(SharePieces(params, keys, self.index, body))

    def openings(
        self, coin: Coin, set_sha256: bytes, vectors: Sequence[SharePieces]
    ) -> OpeningValues:
        """Compute this holder's shares of what the checks open."""
        return compute_openings(self._params, coin, set_sha256, vectors, self._keys)

    def sums(self, sums: Sequence[Sequence[int]]) -> list[Words]:
        """Compute this holder's shares of the sums; all weights are 1."""
        return sum_shares(self._params, [(vector, 1) for vector in self.vectors], sums)


def holders_of(parties: Parties, params: RoundParameters) -> list[Holder]:
    """The whole committee."""
    return [Holder(parties, params, index) for index in range(1, HOLDERS + 1)]


def flip_coin(parties: Parties, params: RoundParameters, set_sha256: bytes) -> Coin:
    """Open the coin of a frozen set from every holder's vote and share."""
    keys_of = parties.keys.items()
    votes = {index: coin_commitments(keys, set_sha256) for index, keys in keys_of}
    box = BallotBox.of(params, set_sha256, votes)
    shares = {
        index: CoinShare(box_sha256=box.sha256, pieces=coin_pieces(keys, set_sha256))
        for index, keys in keys_of
    }
    return open_coin(params, box, shares)


def distribute(
    parties: Parties, params: RoundParameters, holders: Sequence[Holder], updates: Sequence[Update]
) -> None:
    """Bring one update of each of the first devices to all holders."""
    for number, update in enumerate(updates):
        bundle = parties.seal(params, device_id_of(number), update)[:]
        prefix, prefix_bytes = parse_prefix(bundle)
        index = check_structure(
            params,
            prefix,
            prefix_bytes=prefix_bytes,
            total_bytes=len(bundle),
            device_id=device_id_of(number),
        )
        for holder in holders:
            holder.take(prefix, index, bundle)


def read_all(update: SealedUpdate) -> int:
    """Read a bundle as an upload does, digest first; return its length."""
    update.digest  # noqa: B018  # the upload's header has it
    for start in range(0, len(update), READ_BYTES):
        update.read(start, READ_BYTES)
    return len(update)


def device_id_of(number: int) -> str:
    """Id of a device that takes part."""
    return f"bench-{number:06d}"


def random_update(dim: int, *, seed: int) -> Update:
    """An update of half the norm that devices are allowed."""
    values = np.random.default_rng(seed).standard_normal(size=dim, dtype=np.float32)
    values *= np.float32(0.5 * CLIP_NORM / float(np.linalg.norm(values)))
    return values


@functools.lru_cache(maxsize=4096)
def _signer(issuer: Credentials, device_id: str) -> DeviceSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = issue_device_certificate(
        issuer,
        device_id=device_id,
        key=key.public_key(),
        now_s=time.time(),
        valid_for_s=_VALID_FOR_S,
    )
    return DeviceSigner.from_pem(issued.chain_pem, private_key_pem(key))


def _chunk_of(chunks: Sequence[memoryview]) -> Callable[[int], memoryview]:
    return lambda number: chunks[number]
