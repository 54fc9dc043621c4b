"""One small installation for tests: a committee, a certified device, and rounds of theirs."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.certificates.credentials import (
    create_authority,
    issue_device_certificate,
    private_key_pem,
)
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceAuthority, DeviceSigner, VerifiedHeader
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import BundleIndex, SealedUpdate, parse_prefix

NOW_S = 1_700_000_000
FRACTION_BITS = 20
ISSUER = create_authority(name="Issuer", now_s=NOW_S, valid_for_s=86_400)
AUTHORITY = DeviceAuthority(ISSUER.certificate_pem)
HOLDERS = [HolderSecrets.generate(random.Random(seed).randbytes) for seed in range(5)]
COMMITTEE = Committee(
    threshold=3,
    holders=tuple(
        secrets.identity(index=index, name=f"holder {index}", address="")
        for index, secrets in enumerate(HOLDERS, start=1)
    ),
)


def device(device_id: str = "phone-1") -> DeviceSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = issue_device_certificate(
        ISSUER, device_id=device_id, key=key.public_key(), now_s=NOW_S, valid_for_s=3600
    )
    return DeviceSigner.from_pem(issued.chain_pem, private_key_pem(key))


PHONE = device()


def make_round(
    *,
    dim: int = 100,
    format: ShareFormat = ShareFormat.SHAMIR_SEEDED,  # noqa: A002  # the name of the field
    checks: Checks = Checks.NORM,
    field_bits: int = 61,
    round: int = 7,  # noqa: A002  # the name of the field
) -> RoundParameters:
    is_checked = checks is not Checks.SUM
    return RoundParameters(
        task="digits",
        round=round,
        base_version=5,
        model_sha256="ab" * 32,
        committee_sha256=COMMITTEE.sha256,
        threshold=3,
        holders=5,
        quorum=4,
        dim=dim,
        field_bits=field_bits,
        fraction_bits=FRACTION_BITS,
        norm_bound=2**20 + 2000,
        format=format,
        checks=checks,
        sketch_dim=1024 if is_checked else 0,
        wrap_tests=40 if is_checked else 0,
        wrap_group=16 if is_checked else 0,
        mask_scale=4 if is_checked else 0,
        min_members=8,
        max_members=100,
        rule="mean",
        num_byzantine=0,
        num_to_select=0,
        group_size=0,
        degraded=Degraded.WAIT,
        staleness_weights=(2, 1),
    )


def update_of(dim: int, *, seed: int = 1, norm: float = 0.9) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal(dim)
    return (values * (norm / np.linalg.norm(values))).astype(np.float32)


def sealed(
    params: RoundParameters,
    vector: NDArray[np.float32] | None = None,
    *,
    signer: DeviceSigner = PHONE,
    seed: int = 3,
) -> SealedUpdate:
    return SealedUpdate(
        params,
        COMMITTEE,
        signer,
        update_of(params.dim) if vector is None else vector,
        device_id=signer.device_id,
        model_version=params.base_version,
        random_bytes=random.Random(seed).randbytes,
    )


class Parts:
    """A bundle taken apart as a relay does it."""

    def __init__(self, params: RoundParameters, bundle: bytes) -> None:
        self.prefix, prefix_bytes = parse_prefix(bundle)
        self.index = BundleIndex(params=params, prefix_bytes=prefix_bytes)
        self.bundle = bundle

    @property
    def header(self) -> VerifiedHeader:
        return AUTHORITY.verify(self.prefix.header, now_s=NOW_S)

    def frame(self, holder: int) -> bytes:
        return self.prefix.frames[holder - 1]

    def chunks(self, holder: int) -> list[bytes]:
        extents = self.index.extents(holder)
        return [self.bundle[offset : offset + length] for offset, length in extents]


def resigned(
    parts: Parts, change: Callable[[pb.SharedHeader], None], *, signer: DeviceSigner = PHONE
) -> VerifiedHeader:
    """Return the header of a dishonest device, which signs whatever it likes."""
    header = pb.SharedHeader()
    header.CopyFrom(parts.header.header)
    change(header)
    return AUTHORITY.verify(signer.sign_header(header), now_s=NOW_S)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
