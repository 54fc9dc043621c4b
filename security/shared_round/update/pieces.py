"""What a share holder makes of one device's share: open it, check it, use it.

`open_frame` opens the keys, `BodyCheck` follows the body while it arrives, and `SharePieces` gives
the share's words, chunk by chunk, as often as they are needed. None holds more than a chunk or two.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from security.errors import (
    CommitmentMismatchError,
    MalformedMessageError,
    SealBrokenError,
    WrongHolderError,
)
from security.secret_sharing.expansion import Expansion, derive_key
from security.secret_sharing.field import Words
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import VerifiedHeader
from security.shared_round.terms.parameter_fields import CHUNK_BYTES, TAG_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.sealing import (
    KEY_BYTES,
    Buffer,
    ChunkCipher,
    frame_info,
    num_chunks,
)
from security.shared_round.update.shared_header import check_header, frame_plaintext_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceKeys:
    """The keys of one holder to one device's share. Its repr does not show them.

    Attributes:
        device_id: whose share.
        seeds: seed of each piece that is expanded, by the piece's number.
        content_key: what the body is sealed with; None where the holder gets no body.
    """

    device_id: str
    seeds: Mapping[int, bytes] = field(repr=False)
    content_key: bytes | None = field(repr=False)


def open_frame(
    params: RoundParameters,
    secrets: HolderSecrets,
    holder: int,
    header: VerifiedHeader,
    frame: bytes,
) -> PieceKeys:
    """Open the keys that a device sealed to a holder.

    Args:
        params: the round.
        secrets: the holder's.
        holder: its index.
        header: the device's; who signed it has been checked.
        frame: the holder's sealed keys.

    Raises:
        SharingError: if the round has no such holder.
        WrongRoundParametersError: if the header is of another round or too stale.
        MalformedMessageError: if the header does not have the round's form.
        WrongHolderError: if the frame is another holder's.
        CommitmentMismatchError: if the frame, or a piece's key in it, is not the one that the
            header names.
        SealBrokenError: if the frame does not open for this holder, round, device and nonce, or
            has another length.

    Cost: about 120 us.
    """
    params.scheme.check_holder(holder)
    facts = header.header
    check_header(params, facts)
    _require_named(frame, facts.frame_sha256, holder)
    info = frame_info(
        params_sha256=params.sha256, device_id=header.device_id, holder=holder, nonce=facts.nonce
    )
    plaintext = secrets.unseal(frame, info)
    expected_bytes = frame_plaintext_bytes(params, holder)
    if len(plaintext) != expected_bytes:
        msg = f"a frame must hold {expected_bytes} bytes, got {len(plaintext)}"
        raise SealBrokenError(msg)
    keys = [plaintext[at : at + KEY_BYTES] for at in range(0, expected_bytes, KEY_BYTES)]
    return _held_keys(params, holder, header, keys)


class BodyCheck:
    """Checks one body while its bytes arrive, cut anywhere. Holds one chunk.

    Guarantees:
        Once `finish` has returned, the bytes fed are the ciphertext that the device's header
        commits to, whole and in order, and every word of it is a field element.
    """

    def __init__(
        self, params: RoundParameters, keys: PieceKeys, header: VerifiedHeader, holder: int
    ) -> None:
        """Expect the body of this holder.

        Raises:
            MalformedMessageError: if the round has no body for the holder.
        """
        self._field = params.field
        self._holder = holder
        self._commits_to_text = params.sharing.commits_to_text
        cipher, body = _body_cipher(params, keys, holder)
        self._cipher = cipher
        self._commitment = header.header.body_sha256[body]
        self._body_bytes = params.body_bytes(body)
        self._fed_bytes = 0
        self._chunk = 0
        # Of the body's tags, or of the whole ciphertext.
        self._digest = hashlib.sha256()
        sealed_chunk_bytes = min(CHUNK_BYTES + TAG_BYTES, self._body_bytes)
        self._pending = bytearray(sealed_chunk_bytes)
        self._pending_bytes = 0
        self._plaintext = bytearray(sealed_chunk_bytes - TAG_BYTES)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes.

        Raises:
            SealBrokenError: if a chunk does not open in its place, or the body is too long.
            OutOfRangeWordError: if a chunk holds a number that is no field element.
        """
        view = memoryview(data)
        if self._fed_bytes + len(view) > self._body_bytes:
            msg = f"the body must have {self._body_bytes} bytes, got more"
            raise SealBrokenError(msg)
        if self._commits_to_text:
            self._digest.update(view)
        while view:
            size = min(CHUNK_BYTES + TAG_BYTES, self._body_bytes - self._chunk_start)
            taken = min(size - self._pending_bytes, len(view))
            if taken == size:
                self._open(view[:taken])
            else:
                self._pending[self._pending_bytes : self._pending_bytes + taken] = view[:taken]
                self._pending_bytes += taken
                if self._pending_bytes == size:
                    self._open(memoryview(self._pending)[:size])
                    self._pending_bytes = 0
            self._fed_bytes += taken
            view = view[taken:]

    def finish(self) -> None:
        """Check that the body is complete and is the one that the header commits to.

        Raises:
            SealBrokenError: if bytes are missing.
            CommitmentMismatchError: if the header commits to another body.
        """
        if self._fed_bytes != self._body_bytes:
            msg = f"the body must have {self._body_bytes} bytes, got {self._fed_bytes}"
            raise SealBrokenError(msg)
        if self._digest.digest() != self._commitment:
            msg = f"body_sha256 for holder {self._holder} names another body"
            raise CommitmentMismatchError(msg)

    @property
    def _chunk_start(self) -> int:
        return self._chunk * (CHUNK_BYTES + TAG_BYTES)

    def _open(self, ciphertext: memoryview) -> None:
        plaintext = memoryview(self._plaintext)[: len(ciphertext) - TAG_BYTES]
        self._cipher.open_into(self._chunk, ciphertext, plaintext)
        self._field.check_range(np.frombuffer(plaintext, dtype=self._field.wire_dtype))
        if not self._commits_to_text:
            self._digest.update(ciphertext[-TAG_BYTES:])
        self._chunk += 1


class SharePieces:
    """One holder's Shamir share of one update, made from its keys and its stored body.

    The words are those of the share times the format's `share_scale`.
    """

    def __init__(
        self,
        params: RoundParameters,
        keys: PieceKeys,
        holder: int,
        body: Callable[[int], Buffer] | None,
    ) -> None:
        """Take what `open_frame` gave, and where the body is.

        Args:
            params: the round.
            keys: the holder's keys to this share.
            holder: its index.
            body: returns the ciphertext of a chunk, from 0, of the body that `BodyCheck` passed;
                None where the holder gets no body.

        Raises:
            MalformedMessageError: if a body is given for a holder that gets none, or missing.
        """
        if (body is None) is params.has_body(holder):
            msg = f"body must be given exactly where holder {holder} gets one"
            raise MalformedMessageError(msg)
        self._params = params
        self._keys = keys
        self._holder = holder
        self._body = body

    def chunks(self) -> Iterator[tuple[int, Words]]:
        """Yield position and words of every chunk, in order, extras included.

        The words are overwritten by the next chunk's.

        Raises:
            SealBrokenError: if the stored body has been damaged.

        Cost: 1 to 2 ns a word and piece, and that of the format's `share`.
        """
        params, sharing = self._params, self._params.sharing
        readers = {piece: self._expansion(piece).reader(0) for piece in self._keys.seeds}
        explicit = iter(()) if self._body is None else self._explicit_chunks(self._body)
        # Filled again for every chunk: new memory would cost as much as the words.
        buffers = np.empty((len(readers), next(self._ranges())[1]), np.uint64)
        for start, count in self._ranges():
            pieces = dict(zip(readers, buffers[:, :count], strict=True))
            for piece, read in readers.items():
                read(pieces[piece])
            pieces.update(itertools.islice(explicit, 1))
            yield start, sharing.share(params.field, self._holder, pieces)

    def _explicit_chunks(self, body: Callable[[int], Buffer]) -> Iterator[tuple[int, Words]]:
        """Yield the number of the body's piece, and the words of one chunk after the other."""
        field, sharing = self._params.field, self._params.sharing
        cipher, number = _body_cipher(self._params, self._keys, self._holder)
        piece = sharing.piece(sharing.num_seeds + number)
        buffer = np.empty(next(self._ranges())[1], field.wire_dtype)
        for chunk, (_, count) in enumerate(self._ranges()):
            # Words are in range: `BodyCheck` saw this very text, or the tag would not fit.
            words = buffer[:count]
            cipher.open_into(chunk, body(chunk), words.data.cast("B"))
            yield piece, words.astype(np.uint64, copy=False)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield position and number of the words of each chunk."""
        step = CHUNK_BYTES // self._params.field.word_bytes
        for start in range(0, self._params.length, step):
            yield start, min(step, self._params.length - start)

    def _expansion(self, piece: int) -> Expansion:
        key = derive_key(
            self._keys.seeds[piece],
            params_sha256=self._params.sha256,
            device_id=self._keys.device_id,
            piece=piece,
        )
        return Expansion(key, self._params.field, self._params.length)


def _require_named(frame: bytes, named: Sequence[bytes], holder: int) -> None:
    digest = hashlib.sha256(frame).digest()
    if digest == named[holder - 1]:
        return
    if digest in named:
        msg = f"the frame is not the one for holder {holder}"
        raise WrongHolderError(msg)
    msg = f"frame_sha256 of holder {holder} names another frame"
    raise CommitmentMismatchError(msg)


def _held_keys(
    params: RoundParameters, holder: int, header: VerifiedHeader, keys: list[bytes]
) -> PieceKeys:
    sharing, named = params.sharing, header.header.piece_sha256
    seeds: dict[int, bytes] = {}
    content_key = None
    for number, key in zip(sharing.keys_of(holder), keys, strict=True):
        # Every holder compares with the same signed list, so that all expand the same pieces.
        if sharing.names_pieces and hashlib.sha256(key).digest() != named[number]:
            msg = f"piece_sha256 of piece {sharing.piece(number)} names another key"
            raise CommitmentMismatchError(msg)
        if number < sharing.num_seeds:
            seeds[sharing.piece(number)] = key
        else:
            content_key = key
    return PieceKeys(device_id=header.device_id, seeds=seeds, content_key=content_key)


def _body_cipher(params: RoundParameters, keys: PieceKeys, holder: int) -> tuple[ChunkCipher, int]:
    body = params.sharing.body_of(holder)
    if keys.content_key is None or body is None:
        msg = f"holder {holder} gets no body in this round"
        raise MalformedMessageError(msg)
    chunks = num_chunks(params.length * params.field.word_bytes)
    return ChunkCipher(keys.content_key, chunks=chunks), body
