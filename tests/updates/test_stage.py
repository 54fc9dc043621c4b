import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.looped import looped
from updates.codec import CodecError, MalformedUpdateError, NonCanonicalUpdateError
from updates.stage import LEVEL, STORED, ZSTD, Stage, zstd_version

LIMIT = 10_000
OURS = Stage(plan_version=zstd_version(), max_body_bytes=LIMIT)
BODY = b"abc" * 100
RICH = b"".join(b"%d," % (number * number) for number in range(900))


def frame(body: bytes, **settings: int) -> bytes:
    return zstandard.ZstdCompressor(**{"level": LEVEL, **settings}).compress(body)  # type: ignore[arg-type]  # settings are of several types


def unpack(stage: int, data: bytes, of: Stage = OURS) -> bytes:
    return bytes(of.unpack(stage, memoryview(data)))


def test_the_version_is_libzstds_own_number() -> None:
    major, minor, release = zstandard.ZSTD_VERSION
    assert zstd_version() == (major * 100 + minor) * 100 + release


@given(st.binary(max_size=200) | st.integers(0, LIMIT).map(bytes))
def test_bodies_come_back_and_never_grow(body: bytes) -> None:
    stage, data = OURS.pack(body)
    assert len(data) <= len(body)
    assert (stage == ZSTD) == (len(data) < len(body))
    assert unpack(stage, data) == body
    assert unpack(STORED, body) == body


@pytest.mark.parametrize("version", [0, zstd_version() + 1])
def test_without_the_plans_version_bodies_are_stored_and_frames_refused(version: int) -> None:
    stage = Stage(plan_version=version, max_body_bytes=LIMIT)
    assert not stage.has_zstd
    assert stage.pack(BODY) == (STORED, BODY)
    assert unpack(STORED, BODY, stage) == BODY
    with pytest.raises(MalformedUpdateError, match="is not accepted"):
        unpack(ZSTD, frame(BODY), stage)


@pytest.mark.parametrize("stage", [2, 255])
def test_other_stages_are_refused(stage: int) -> None:
    with pytest.raises(MalformedUpdateError, match=f"stage={stage} must be"):
        unpack(stage, BODY)


@pytest.mark.parametrize(
    "data",
    [
        frame(RICH, level=1),
        frame(RICH, level=19),
        frame(BODY, write_checksum=True),
        frame(b"short"),
        frame(b""),
    ],
    ids=["level 1", "level 19", "checksum", "no smaller", "empty"],
)
def test_other_frames_of_a_body_are_not_canonical(data: bytes) -> None:
    with pytest.raises(NonCanonicalUpdateError, match="must be what libzstd"):
        unpack(ZSTD, data)


@looped(
    "data",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        BODY,
        frame(BODY)[:-1],
        frame(BODY) + b"\0",
        frame(BODY) + frame(BODY),
        frame(BODY, write_content_size=False),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame(BODY),
        frame(bytes(LIMIT + 1)),
        zstandard.ZstdCompressor(
            level=LEVEL, dict_data=zstandard.ZstdCompressionDict(b"abcabc" * 20)
        ).compress(BODY * 3)[:-3],
    ],
    ids=[
        "nothing",
        "magic alone",
        "no frame",
        "cut off",
        "a byte more",
        "two frames",
        "size left out",
        "skippable",
        "skippable before",
        "too large",
        "dictionary",
    ],
)
def test_anything_but_one_whole_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedUpdateError):
        unpack(ZSTD, data)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=3))
def test_mutated_frames_are_refused(changes: list[tuple[int, int]]) -> None:
    good = frame(BODY + b"tail")
    mutated = bytearray(good)
    for place, change in changes:
        mutated[place % len(good)] ^= change
    if bytes(mutated) == good:
        return
    try:
        body = unpack(ZSTD, bytes(mutated))
    except CodecError:
        return
    assert OURS.pack(body) == (ZSTD, bytes(mutated))


def bombs() -> dict[str, bytes]:
    honest = frame(bytes(1 << 28))
    # Says 300 bytes and holds 256 MiB; says 1 EiB and holds 256 MiB; repeats one block.
    header = b"\x28\xb5\x2f\xfd"
    blocks = zstandard.ZstdCompressor(level=LEVEL, write_content_size=False).compress(
        bytes(1 << 28)
    )
    body = blocks[6:]  # behind magic, descriptor and window
    says_less = header + b"\x60" + (300 - 256).to_bytes(2, "little") + body
    says_more = header + b"\xe0" + (1 << 60).to_bytes(8, "little") + body
    return {"honest": honest, "says less": says_less, "says more": says_more, "unsaid": blocks}


def test_bombs_are_refused_without_the_memory_they_ask_for() -> None:
    for name, bomb in bombs().items():
        assert len(bomb) < 100_000, name
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                unpack(ZSTD, bomb)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < LIMIT + 4 * len(bomb) + 100_000, name
