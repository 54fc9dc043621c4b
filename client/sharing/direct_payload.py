"""An update whose shares go to their holders directly: what the server gets, and what they get.

Needs the extra `fedagg[shared]`.
"""

import threading
from collections.abc import Iterator

import xxhash

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.keys.signing import read_header
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate, parse_prefix


class DirectPayload:
    """A sealed update's prefix as a payload, and its shares for the holders. For any thread.

    Attributes:
        digest: XXH3-128 of the prefix, big-endian, 16 bytes.
        header_sha256: names the update in the holders' receipts.
    """

    def __init__(self, params: RoundParameters, sealed: SealedUpdate) -> None:
        self._sealed = sealed
        self._lock = threading.Lock()
        self._bytes = sealed.prefix
        self._parsed, _ = parse_prefix(self._bytes)
        self._params_sha256 = params.sha256
        self.digest = xxhash.xxh3_128_digest(self._bytes)
        self.header_sha256 = sealed.header_sha256

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, part: slice) -> bytes:
        return self._bytes[part]

    def is_of(self, params: RoundParameters, *, model_version: int) -> bool:
        """Return whether it was sealed for this round, and trained from this version."""
        header = read_header(self._parsed.header)
        return (header.params_sha256, header.model_version) == (params.sha256, model_version)

    def start(self, holder: int) -> pb.ShareStart:
        """Return what a holder is told first."""
        return pb.ShareStart(
            params_sha256=self._params_sha256,
            header=self._parsed.header,
            frame=self._parsed.frames[holder - 1],
            body_bytes=sum(length for _, length in self._sealed.index.extents(holder)),
        )

    def body(self, holder: int) -> Iterator[bytes]:
        """Yield the holder's body, a little more than 1 MiB at a time, the same every time.

        Raises:
            SharingError: if the vector has changed since it was sealed.

        Cost: every chunk costs what that of all bodies does; they are made together.
        """
        for offset, length in self._sealed.index.extents(holder):
            with self._lock:  # several holders are served at a time
                data = self._sealed.read(offset, length)
            yield data


def delivered_bytes(params: RoundParameters) -> int:
    """Return the bytes of all holders' bodies together."""
    holders = range(1, params.holders + 1)
    return sum(params.body_bytes(0) for holder in holders if params.has_body(holder))
