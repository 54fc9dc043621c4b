"""One device's update, or noise, as one byte string, and how it is taken apart again.

    "FSU1" | length of the prefix, 4 bytes little-endian | serialized BundlePrefix
    for each chunk: its ciphertext in body 0, in body 1, ...

Chunks of different bodies alternate, so that a device makes a chunk of all of them at a time and a
relay cuts out each holder's body without opening anything. Where devices hand the bodies to the
holders themselves, what the coordinator gets ends after the prefix.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import xxhash
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import MalformedMessageError, SharingError, WrongRoundParametersError
from security.shared_round.keys.holder_keys import SEAL_OVERHEAD_BYTES, seal_to
from security.shared_round.keys.signing import DeviceSigner, read_header
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameter_fields import CHUNK_BYTES, TAG_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.sealing import ChunkCipher, frame_info, num_chunks
from security.shared_round.update.shared_header import check_header, frame_plaintext_bytes
from security.shared_round.update.update_shares import UpdateKeys, UpdateShares, VectorShares

MAX_PREFIX_BYTES: Final = 64 * 1024

_DIGEST_READ_BYTES: Final = 1024 * 1024

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"FSU1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleIndex:
    """Where in a bundle everything is.

    Attributes:
        params: the round.
        prefix_bytes: bytes before the first body chunk.
    """

    params: RoundParameters
    prefix_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the length of the whole bundle."""
        bodies = range(self.params.num_bodies)
        return self.prefix_bytes + sum(self.params.body_bytes(body) for body in bodies)

    @property
    def chunks(self) -> int:
        """Return how many chunks each body has."""
        return num_chunks(self._plaintext_bytes)

    def chunk_bytes(self, chunk: int) -> int:
        """Return the ciphertext bytes of a chunk of one body."""
        return min(CHUNK_BYTES, self._plaintext_bytes - chunk * CHUNK_BYTES) + TAG_BYTES

    def group_offset(self, chunk: int) -> int:
        """Return where the bodies' chunks of this number begin."""
        return self.prefix_bytes + chunk * self.params.num_bodies * (CHUNK_BYTES + TAG_BYTES)

    def extents(self, holder: int) -> list[tuple[int, int]]:
        """Return offset and length of the parts that in order are this holder's body."""
        body = self.params.sharing.body_of(holder)
        if body is None:
            return []
        return [
            (self.group_offset(chunk) + body * self.chunk_bytes(chunk), self.chunk_bytes(chunk))
            for chunk in range(self.chunks)
        ]

    @property
    def _plaintext_bytes(self) -> int:
        return self.params.length * self.params.field.word_bytes


def parse_prefix(data: bytes) -> tuple[pb.BundlePrefix, int]:
    """Read a bundle's prefix.

    Args:
        data: the bundle, or its first `MAX_PREFIX_BYTES` bytes.

    Returns:
        The prefix, and how many bytes of the bundle it takes.

    Raises:
        MalformedMessageError: if the data does not begin with a whole prefix.
    """
    if len(data) < _HEAD.size:
        msg = f"a bundle must have at least {_HEAD.size} bytes, got {len(data)}"
        raise MalformedMessageError(msg)
    magic, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    if magic != _MAGIC:
        msg = f"a bundle must begin with {_MAGIC!r}"
        raise MalformedMessageError(msg)
    if end > min(len(data), MAX_PREFIX_BYTES):
        msg = f"the prefix of {end} bytes must be whole and have at most {MAX_PREFIX_BYTES}"
        raise MalformedMessageError(msg)
    try:
        return pb.BundlePrefix.FromString(data[_HEAD.size : end]), end
    except DecodeError as error:
        msg = "the prefix must be a serialized BundlePrefix"
        raise MalformedMessageError(msg) from error


def check_structure(  # noqa: PLR0913  # the facts of one upload
    params: RoundParameters,
    prefix: pb.BundlePrefix,
    *,
    prefix_bytes: int,
    total_bytes: int,
    device_id: str,
    has_bodies: bool = True,
) -> BundleIndex:
    """Check what can be checked of a bundle without any key; return where its parts are.

    Args:
        params: the round.
        prefix: as `parse_prefix` returned it.
        prefix_bytes: likewise.
        total_bytes: length of what was sent.
        device_id: who sent it.
        has_bodies: whether that is the whole bundle; else it must be the prefix alone.

    Raises:
        WrongRoundParametersError: if it was made for other parameters, or is too stale.
        MalformedMessageError: if a part has the wrong number, length or digest, or the header
            names another device.
    """
    header = read_header(prefix.header)
    check_header(params, header)
    if header.device_id != device_id:
        msg = f"device {device_id[:100]!r} sent a header of {header.device_id[:100]!r}"
        raise MalformedMessageError(msg)
    _check_frames(params, prefix.frames, header)
    index = BundleIndex(params=params, prefix_bytes=prefix_bytes)
    expected = index.total_bytes if has_bodies else prefix_bytes
    if total_bytes != expected:
        what = "the bundle" if has_bodies else "the prefix alone"
        msg = f"{what} must have {expected} bytes, got {total_bytes}"
        raise MalformedMessageError(msg)
    return index


def _check_frames(
    params: RoundParameters, frames: Sequence[bytes], header: pb.SharedHeader
) -> None:
    if len(frames) != params.holders:
        msg = f"a bundle must have {params.holders} frames, got {len(frames)}"
        raise MalformedMessageError(msg)
    for holder, frame in enumerate(frames, start=1):
        expected = frame_plaintext_bytes(params, holder) + SEAL_OVERHEAD_BYTES
        is_named = hashlib.sha256(frame).digest() == header.frame_sha256[holder - 1]
        if len(frame) != expected or not is_named:
            msg = f"frame {holder} must have {expected} bytes and be the one the header names"
            raise MalformedMessageError(msg)


class HeaderSigner(Protocol):
    """Who seals a vector: a device, or a holder that deals noise."""

    @property
    def device_id(self) -> str:
        """Name that the header carries."""

    def sign_header(self, header: pb.SharedHeader) -> pb.SignedHeader:
        """Sign a header by this name."""


class SealedVector:
    """Shares as the bundle that is uploaded: `len`, slices, `read`, the same every time.

    Not for several threads at a time.

    Attributes:
        index: where in the bundle everything is.
        header_sha256: SHA-256 of the signed header; receipts name the vector by it.
    """

    def __init__(  # noqa: PLR0913  # the facts of one vector
        self,
        params: RoundParameters,
        committee: Committee,
        signer: HeaderSigner,
        shares: VectorShares,
        keys: UpdateKeys,
        *,
        model_version: int,
    ) -> None:
        """Seal shares that were made with these keys for this signer."""
        self._params = params
        self._shares = shares
        self.index = BundleIndex(params=params, prefix_bytes=0)
        self._ciphers = [ChunkCipher(k, chunks=self.index.chunks) for k in keys.content_keys]
        self._group = bytearray(params.num_bodies * self.index.chunk_bytes(0))
        self._held_chunk = -1
        self._tags: list[list[bytes]] = []
        commitments = self._commitments()
        frames = _seal_frames(params, committee, signer.device_id, keys)
        header = pb.SharedHeader(
            params_sha256=params.sha256,
            device_id=signer.device_id,
            nonce=keys.nonce,
            model_version=model_version,
            frame_sha256=[hashlib.sha256(frame).digest() for frame in frames],
            body_sha256=commitments,
            piece_sha256=keys.piece_digests(params),
        )
        signed = signer.sign_header(header)
        self.header_sha256 = hashlib.sha256(signed.header).digest()
        self._prefix = _make_prefix(signed, frames)
        self.index = BundleIndex(params=params, prefix_bytes=len(self._prefix))
        self._digest: bytes | None = None

    def __len__(self) -> int:
        return self.index.total_bytes

    def __getitem__(self, part: slice) -> bytes:
        """Return a slice of step 1, as of bytes."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            msg = f"step={step} of a slice must be 1"
            raise SharingError(msg)
        return self.read(start, max(0, stop - start))

    @property
    def prefix(self) -> bytes:
        """Return what stands before the bodies."""
        return self._prefix

    @property
    def digest(self) -> bytes:
        """Return the xxh3-128 of the whole bundle, 16 bytes; computed once."""
        if self._digest is None:
            state = xxhash.xxh3_128()
            for start in range(0, len(self), _DIGEST_READ_BYTES):
                state.update(self.read(start, _DIGEST_READ_BYTES))
            self._digest = state.digest()
        return self._digest

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on, `length` or as many as there are.

        Raises:
            SharingError: if the vector has changed since the update was sealed.

        Cost: that of every chunk it touches, except for the one that was read last.
        """
        end = min(offset + length, len(self))
        parts = [self._prefix[offset:end]] if offset < len(self._prefix) else []
        position = max(offset, len(self._prefix))
        while position < end:
            chunk = (position - len(self._prefix)) // (
                self._params.num_bodies * (CHUNK_BYTES + TAG_BYTES)
            )
            at = position - self.index.group_offset(chunk)
            group = self._sealed_group(chunk)
            part = bytes(group[at : at + end - position])
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def _commitments(self) -> list[bytes]:
        """Seal everything once, keep the tags, and return what the header says of each body."""
        digests = [hashlib.sha256() for _ in self._ciphers]
        commits_to_text = self._params.sharing.commits_to_text
        for chunk in range(self.index.chunks):
            size = self.index.chunk_bytes(chunk)
            group = self._seal_group(chunk)
            tags = _tags(group, size)
            for digest, tag in zip(digests, tags, strict=True):
                digest.update(group if commits_to_text else tag)
            self._tags.append(tags)
        return [digest.digest() for digest in digests]

    def _sealed_group(self, chunk: int) -> memoryview:
        """Return one chunk of every body, the same as the first time."""
        size = self.index.chunk_bytes(chunk)
        if chunk == self._held_chunk:
            return memoryview(self._group)[: self._params.num_bodies * size]
        group = self._seal_group(chunk)
        if _tags(group, size) != self._tags[chunk]:
            # Two texts under one key and nonce would give away their difference.
            self._held_chunk = -1
            self._group[:] = bytes(len(self._group))
            msg = "vector must not change between sealing and upload"
            raise SharingError(msg)
        return group

    def _seal_group(self, chunk: int) -> memoryview:
        size = self.index.chunk_bytes(chunk)
        group = memoryview(self._group)[: self._params.num_bodies * size]
        self._held_chunk = -1
        for body, plaintext in enumerate(self._shares.bodies(chunk)):
            self._ciphers[body].seal_into(chunk, plaintext, group[body * size : (body + 1) * size])
        self._held_chunk = chunk
        return group


class SealedUpdate(SealedVector):
    """One update as the bundle that a device uploads."""

    def __init__(  # noqa: PLR0913  # the facts of one update
        self,
        params: RoundParameters,
        committee: Committee,
        signer: DeviceSigner,
        vector: NDArray[np.float32],
        *,
        device_id: str,
        model_version: int,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Share and seal an update.

        Args:
            params: the round.
            committee: its share holders.
            signer: the device's certified key.
            vector: (dim,) float32. It is kept and must not change until the upload is over; a
                change is noticed and ends in SharingError, never in a leak.
            device_id: who sends it: the signer's.
            model_version: what the update was trained from.
            random_bytes: random source of seeds, keys, masks and nonce.

        Raises:
            SharingError: if the vector has another shape, is not finite, or is longer than the
                round's norm bound once encoded.
            WrongRoundParametersError: if the committee or the device is another one than the
                parameters or the signer name, or the model version is not taken.

        Cost: about 15 ms for a million elements and (3, 5), where it is compiled; reading costs
            nearly the same again, and so does the digest. Memory: two chunks a body.
        """
        check_committee(params, committee)
        if signer.device_id != device_id:
            msg = f"device_id={device_id[:100]!r} must be the certificate's {signer.device_id!r}"
            raise WrongRoundParametersError(msg)
        params.staleness_weight(model_version)
        keys = UpdateKeys.draw(params, random_bytes)
        shares = UpdateShares(params, vector, keys, device_id=device_id, random_bytes=random_bytes)
        super().__init__(params, committee, signer, shares, keys, model_version=model_version)


def _tags(group: memoryview, size: int) -> list[bytes]:
    """Return the tags of the chunks, of `size` bytes each, of all bodies."""
    return [bytes(group[end - TAG_BYTES : end]) for end in range(size, len(group) + 1, size)]


def check_committee(params: RoundParameters, committee: Committee) -> None:
    """Refuse to seal for another committee than the round's.

    Raises:
        WrongRoundParametersError: if it is another one.
    """
    if committee.sha256 != params.committee_sha256:
        msg = f"committee={committee.sha256.hex()} must be {params.committee_sha256.hex()}"
        raise WrongRoundParametersError(msg)
    if (committee.threshold, len(committee.holders)) != (params.threshold, params.holders):
        msg = f"threshold={params.threshold} and holders={params.holders} must be the committee's"
        raise WrongRoundParametersError(msg)


def _seal_frames(
    params: RoundParameters, committee: Committee, device_id: str, keys: UpdateKeys
) -> list[bytes]:
    return [
        seal_to(
            identity,
            keys.frame(params, identity.index),
            frame_info(
                params_sha256=params.sha256,
                device_id=device_id,
                holder=identity.index,
                nonce=keys.nonce,
            ),
        )
        for identity in committee.holders
    ]


def _make_prefix(header: pb.SignedHeader, frames: Sequence[bytes]) -> bytes:
    """Return what stands before the bodies."""
    prefix = pb.BundlePrefix(header=header, frames=frames)
    data = prefix.SerializeToString(deterministic=True)
    return _HEAD.pack(_MAGIC, len(data)) + data
