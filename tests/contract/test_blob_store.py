"""What every blob store does, on files (both durabilities), in memory and on S3."""

import asyncio
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from server.config.durability import Durability
from server.errors import StoreUnavailable
from server.round.ports import BlobNotFound
from server.storage.blob_objects import SINGLE_REQUEST_BYTES
from server.storage.blobs import BlobKeyError, BlobStore

BUCKET = "blobs"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _use_s3(endpoint: str, environment: pytest.MonkeyPatch) -> str:
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    environment.setenv("AWS_ACCESS_KEY_ID", "test")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return f"s3://{BUCKET}"


@pytest.fixture(
    params=[
        "file",
        "file-fsync",
        "memory",
        pytest.param("s3", marks=pytest.mark.slow),
    ]
)
def make_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["StoreMaker"]:
    maker = StoreMaker(request, tmp_path, monkeypatch)
    yield maker
    for store in maker.opened:
        store.close()


class StoreMaker:
    """Opens stores on one place that is empty when the test begins."""

    def __init__(
        self, request: pytest.FixtureRequest, tmp_path: Path, environment: pytest.MonkeyPatch
    ) -> None:
        self.kind: str = request.param
        self.opened: list[BlobStore] = []
        folder = f"test-{os.getpid()}-{tmp_path.name}"
        if self.kind == "s3":
            root = _use_s3(request.getfixturevalue("s3_endpoint"), environment)
            self._url = f"{root}/{folder}"
        elif self.kind == "memory":
            self._url = f"memory://{folder}"
        else:
            self._url = (tmp_path / "blobs").as_uri()

    @property
    def keeps_parts(self) -> bool:
        return self.kind.startswith("file")

    def __call__(self) -> BlobStore:
        durability = Durability.MACHINE if self.kind == "file-fsync" else Durability.PROCESS
        self.opened.append(BlobStore(self._url, durability=durability))
        return self.opened[-1]


@pytest.fixture
def store(make_store: StoreMaker) -> BlobStore:
    return make_store()


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def test_a_blob_reads_back_whole_and_in_ranges(store: BlobStore) -> None:
    data = noise(100_000)
    await store.put("tasks/t/model", data)
    assert await store.get("tasks/t/model") == data
    assert await store.size("tasks/t/model") == len(data)
    for offset, length in [(0, 10), (99_990, 10), (99_990, 50), (0, 10**9), (500, 0)]:
        expected = data[offset : offset + length]
        assert await store.read_range("tasks/t/model", offset, length) == expected
    assert await store.read_range("tasks/t/model", 100_000, 1) == b""
    assert await store.read_range("tasks/t/model", 200_000, 1) == b""


async def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    await store.put("a", b"")
    assert await store.get("a") == b""
    assert await store.size("a") == 0
    assert await store.read_range("a", 0, 5) == b""


async def test_put_again_replaces(store: BlobStore) -> None:
    await store.put("a/b", noise(1000, 1))
    await store.put("a/b", memoryview(noise(10, 2)))
    assert await store.get("a/b") == noise(10, 2)
    assert await store.list("") == ["a/b"]


async def test_absent_blobs_are_not_found(store: BlobStore) -> None:
    assert await store.size("a/b") is None
    with pytest.raises(BlobNotFound):
        await store.get("a/b")
    with pytest.raises(BlobNotFound):
        await store.read_range("a/b", 0, 1)
    assert await store.list("a") == []
    assert await store.delete_prefix("a") == 0
    await store.delete("a/b")


async def test_a_folder_is_not_a_blob(store: BlobStore) -> None:
    await store.put("a/b/c", b"x")
    assert await store.list("a/b/c") == []
    if store.local_path("a/b") is None:
        assert await store.size("a/b") is None
        with pytest.raises(BlobNotFound):
            await store.get("a/b")


async def test_prefix_means_folder(store: BlobStore) -> None:
    keys = ["a/b/1", "a/b/2/x", "a/bc/3", "a/b.d", "z"]
    for key in keys:
        await store.put(key, key.encode())
    assert await store.list("") == sorted(keys)
    assert await store.list("a/b") == await store.list("a/b/") == ["a/b/1", "a/b/2/x"]
    assert await store.delete_prefix("a/b") == 2
    assert await store.list("") == ["a/b.d", "a/bc/3", "z"]
    await store.delete("z")
    assert await store.list("") == ["a/b.d", "a/bc/3"]


async def test_what_one_store_wrote_another_reads(make_store: StoreMaker) -> None:
    first, second = make_store(), make_store()
    assert await second.list("a") == []
    assert await second.size("a/b") is None
    await first.put("a/b", b"data")
    assert await second.list("a") == ["a/b"]
    assert await second.get("a/b") == b"data"


@pytest.mark.parametrize(
    "key",
    [
        *("", "/a", "a//b", "a/", "..", "a/../b", "./a", "a b", "é", "a\x00", "a\n"),
        *("x" * 181, "a.parts/b", "a.tmp", "/".join(["x" * 100] * 10)),
    ],
)
async def test_keys_that_could_leave_the_store_are_refused(key: str) -> None:
    store = BlobStore("memory://keys", durability=Durability.PROCESS)
    with pytest.raises(BlobKeyError):
        await store.put(key, b"")
    with pytest.raises(BlobKeyError):
        store.open_part(key, part="p")
    with pytest.raises(BlobKeyError):
        store.open_part("a", part=key or "/")
    store.close()


async def test_concurrent_readers_and_writers_see_whole_blobs(store: BlobStore) -> None:
    versions = [bytes([i]) * 50_000 for i in range(8)]
    await store.put("k", versions[0])

    async def read() -> bool:
        return await store.get("k") in versions

    results = await asyncio.gather(
        *(store.put("k", version) for version in versions), *(read() for _ in range(16))
    )
    assert all(result is not False for result in results)


async def test_a_part_is_invisible_until_committed(store: BlobStore) -> None:
    writer = store.open_part("r/u", part="one")
    writer.write(noise(5000))
    writer.write(memoryview(noise(300, 1)))
    assert await store.size("r/u") is None
    assert await store.list("") == []
    writer.commit()
    assert await store.get("r/u") == noise(5000) + noise(300, 1)
    assert await store.list("") == ["r/u"]
    assert await store.stored_part("r/u") is None
    writer.abort(keep=False)  # as a `finally` does
    assert await store.size("r/u") == 5300
    with pytest.raises(ValueError, match="already committed"):
        writer.write(b"more")


@pytest.mark.slow
async def test_a_large_part_is_streamed(store: BlobStore) -> None:
    size = SINGLE_REQUEST_BYTES + 12_345
    data = noise(size)
    writer = store.open_part("r/u", part="one")
    for start in range(0, size, 1 << 20):
        writer.write(memoryview(data)[start : start + (1 << 20)])
    assert await store.size("r/u") is None
    writer.commit()
    assert await store.get("r/u") == data


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, SINGLE_REQUEST_BYTES + 1])
async def test_an_aborted_or_dropped_part_leaves_nothing_visible(
    store: BlobStore, size: int
) -> None:
    aborted = store.open_part("r/u", part="one")
    aborted.write(bytes(size))
    aborted.abort(keep=False)
    aborted.abort(keep=False)
    with pytest.raises(ValueError, match="aborted"):
        aborted.commit()
    del aborted
    dropped = store.open_part("r/v", part="one")
    dropped.write(bytes(size))
    del dropped
    assert await store.list("") == []
    assert await store.stored_part("r/u") is None


async def test_an_empty_part_commits_to_an_empty_blob(store: BlobStore) -> None:
    store.open_part("r/u", part="one").commit()
    assert await store.get("r/u") == b""


async def test_an_interrupted_upload_resumes_from_the_longest_part(
    make_store: StoreMaker,
) -> None:
    data = noise(10_000)
    for part, size in [("short", 100), ("long", 6_000), ("empty", 0)]:
        writer = make_store().open_part("r/u", part=part)
        writer.write(data[:size])
        writer.abort(keep=True)

    store = make_store()
    if not make_store.keeps_parts:
        assert await store.stored_part("r/u") is None
        with pytest.raises(BlobNotFound):
            list(store.iter_part("r/u", part="long", length=1))
        return
    assert await store.stored_part("r/u") == ("long", 6_000)
    assert await store.list("") == []

    resumed = store.open_part("r/u", part="resumed")
    for chunk in store.iter_part("r/u", part="long", length=5_500, chunk_bytes=1_000):
        resumed.write(chunk)
    resumed.write(data[5_500:])
    resumed.commit()
    assert await store.get("r/u") == data

    await store.delete_part("r/u", part="long")
    await store.delete_part("r/u", part="long")
    assert await store.stored_part("r/u") == ("short", 100)
    with pytest.raises(BlobNotFound):
        list(store.iter_part("r/u", part="short", length=101))
    await store.delete("r/u")
    assert await store.stored_part("r/u") is None


async def test_two_attempts_at_one_upload_do_not_disturb_each_other(store: BlobStore) -> None:
    first, second = (store.open_part("r/u", part=name) for name in ("a", "b"))
    first.write(b"1" * 10)
    second.write(b"2" * 20)
    first.commit()
    assert await store.get("r/u") == b"1" * 10
    second.commit()
    assert await store.get("r/u") == b"2" * 20


async def test_deleting_a_folder_removes_its_parts(make_store: StoreMaker) -> None:
    store = make_store()
    await store.put("r/7/done", b"x")
    writer = store.open_part("r/7/cut", part="one")
    writer.write(b"abc")
    writer.abort(keep=True)
    assert await store.delete_prefix("r/7") == 1
    assert await store.stored_part("r/7/cut") is None
    assert await store.list("") == []


async def test_uploads_racing_with_the_purge_of_their_folder_do_not_break_it(
    store: BlobStore,
) -> None:
    """A late upload to a purged round succeeds or is refused; nothing else happens."""

    def upload(name: str) -> None:
        for attempt in range(30):
            writer = store.open_part(f"r/1/u{attempt % 3}", part=f"{name}{attempt}")
            try:
                writer.write(b"x" * 100)
                writer.commit()
            except StoreUnavailable:
                writer.abort(keep=False)

    with ThreadPoolExecutor(2) as pool:
        uploads = [pool.submit(upload, name) for name in ("a", "b")]
        while not all(future.done() for future in uploads):
            await store.delete_prefix("r/1")
        for future in uploads:
            future.result()
    await store.delete_prefix("r/1")
    assert await store.list("") == []
    await store.put("r/1/u0", b"y")
    assert await store.list("") == ["r/1/u0"]


class TestFiles:
    """What only files can do."""

    @pytest.fixture(params=list(Durability))
    def files(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
        store = BlobStore(str(tmp_path / "blobs"), durability=request.param)
        yield store
        store.close()

    async def test_a_blob_can_be_mapped_and_the_map_outlives_it(self, files: BlobStore) -> None:
        vector = np.arange(1000, dtype="<f4")
        await files.put("r/v", vector.tobytes())
        path = files.local_path("r/v")
        assert path is not None
        mapped = np.memmap(path, dtype="<f4", mode="r")
        await files.put("r/v", bytes(4000))
        await files.delete_prefix("r")
        assert np.array_equal(mapped, vector)

    async def test_others_on_the_machine_cannot_read(
        self, files: BlobStore, tmp_path: Path
    ) -> None:
        await files.put("a/b", b"secret")
        for path in (tmp_path / "blobs", tmp_path / "blobs/a", tmp_path / "blobs/a/b"):
            assert path.stat().st_mode & 0o077 == 0

    async def test_a_store_that_cannot_write_says_so_without_the_path(
        self, files: BlobStore, tmp_path: Path
    ) -> None:
        (tmp_path / "blobs").write_bytes(b"a file where the folder should be")
        with pytest.raises(StoreUnavailable, match="cannot write") as caught:
            await files.put("a", b"x")
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(StoreUnavailable, match="cannot write"):
            files.open_part("a", part="p").write(b"x")

    async def test_leftovers_of_a_crash_are_invisible(
        self, files: BlobStore, tmp_path: Path
    ) -> None:
        await files.put("a/b", b"x")
        (tmp_path / "blobs/a/c.0123456789abcdef.tmp").write_bytes(b"half")
        (tmp_path / "blobs/a/d.parts").mkdir()
        (tmp_path / "blobs/a/d.parts/p1").write_bytes(b"half")
        assert await files.list("") == ["a/b"]
        assert await files.stored_part("a/d") == ("p1", 4)

    async def test_a_deletion_cut_off_by_a_crash_is_finished_when_repeated(
        self, files: BlobStore, tmp_path: Path
    ) -> None:
        await files.put("r/7/u", b"x")
        (tmp_path / "blobs/r/7").rename(tmp_path / "blobs/r/7.0123456789abcdef.tmp")
        await files.put("r/7.b", b"another key that begins alike")
        assert await files.list("") == ["r/7.b"]
        await files.delete_prefix("r/7")
        assert [path.name for path in (tmp_path / "blobs/r").iterdir()] == ["7.b"]

    async def test_only_machine_durability_syncs(
        self, files: BlobStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        synced: list[str] = []
        real = os.fsync

        def recording(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", recording)
        await files.put("a/b", b"x")
        writer = files.open_part("a/c", part="p1")
        writer.write(b"y")
        writer.commit()
        if request.node.callspec.params["files"] is Durability.PROCESS:
            assert synced == []
        else:
            # The folder is synced after the file in it; the new folder's own name in its parent.
            assert synced.index("blobs") < synced.index("p1")
            assert synced[-1] == "a"
            assert synced.index("p1") < len(synced) - 1


@pytest.mark.slow
async def test_an_unreachable_object_store_is_unavailable(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_s3(s3_endpoint, monkeypatch)
    store = BlobStore("s3://no-such-bucket/x", durability=Durability.MACHINE)
    with pytest.raises(StoreUnavailable):
        await store.put("a", b"x")
    store.close()
