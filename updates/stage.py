"""The last stage of an encoding: the body as it is, or one zstd frame of it.

A frame is accepted if it is, byte for byte, what libzstd of the version that the plan names makes
of the body at level 3, and smaller than the body. So a body has at most two forms, and each device
has no choice between them: frames are for those with that version of libzstd, who send the body as
it is only where the frame would be no smaller.
"""

from dataclasses import dataclass
from typing import Final

import zstandard

from updates.codec import MalformedUpdateError, NonCanonicalUpdateError

STORED: Final = 0
ZSTD: Final = 1

LEVEL: Final = 3

_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"


def zstd_version() -> int:
    """Give libzstd's version as ZSTD_versionNumber() does: 10507 for 1.5.7."""
    major, minor, release = zstandard.ZSTD_VERSION
    return major * 10_000 + minor * 100 + release


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The last stage of a plan's encodings.

    Attributes:
        plan_version: libzstd version of the plan; 0: no frames.
        max_body_bytes: most bytes that a body can have.
    """

    plan_version: int
    max_body_bytes: int

    @property
    def has_zstd(self) -> bool:
        """Whether frames can be made and checked here."""
        return self.plan_version == zstd_version()

    def pack(self, body: bytes) -> tuple[int, bytes]:
        """Give the stage and its bytes for a body.

        Cost: O(len(body)) time and memory.
        """
        if self.has_zstd:
            frame = _frame_of(body)
            if len(frame) < len(body):
                return ZSTD, frame
        return STORED, body

    def unpack(self, stage: int, data: memoryview) -> memoryview:
        """Give the body.

        Args:
            stage: STORED or ZSTD.
            data: of the stage, at most `max_body_bytes` with either.

        Raises:
            MalformedUpdateError: if the stage is unknown or not accepted, or the bytes are not one
                frame of at most `max_body_bytes`.
            NonCanonicalUpdateError: if the frame is not the one that `pack` makes, or no smaller
                than the body.

        Guarantees:
            `pack` gives `data` if it is a frame. No more than `max_body_bytes` are decompressed,
            whatever the frame says or holds.

        Cost: O(max_body_bytes) time and memory.
        """
        if stage == STORED:
            return data
        if stage != ZSTD:
            message = f"stage={stage} must be {STORED} (stored) or {ZSTD} (zstd)"
            raise MalformedUpdateError(message)
        if not self.has_zstd:
            message = f"stage={stage} (zstd) is not accepted: frames of libzstd"
            message += f" {self.plan_version} cannot be checked by {zstd_version()}"
            raise MalformedUpdateError(message)
        body = self._decompress(bytes(data))
        if len(data) >= len(body) or _frame_of(body) != data:
            message = f"the zstd frame must be what libzstd {zstd_version()} makes at level {LEVEL}"
            message += ", and smaller than what it holds"
            raise NonCanonicalUpdateError(message)
        return memoryview(body)

    def _decompress(self, frame: bytes) -> bytes:
        # Skippable frames have another magic number, and a size of their own.
        if not frame.startswith(_FRAME_MAGIC):
            message = "the body must be one zstd frame"
            raise MalformedUpdateError(message)
        try:
            size = zstandard.frame_content_size(frame)
            if not 0 <= size <= self.max_body_bytes:
                message = f"a zstd frame of {size} bytes must hold 0..{self.max_body_bytes}"
                raise MalformedUpdateError(message)
            decompressor = zstandard.ZstdDecompressor()
            return decompressor.decompress(
                frame, max_output_size=self.max_body_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            message = f"the body must be one zstd frame: {error}"
            raise MalformedUpdateError(message) from error


def _frame_of(body: bytes) -> bytes:
    # A compressor is not safe for use by several threads, and quick to make.
    return zstandard.ZstdCompressor(level=LEVEL).compress(body)
