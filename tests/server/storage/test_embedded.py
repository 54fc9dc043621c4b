"""The embedded store on the real server: what it survives, who may use it, when it ends."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from server.config.durability import Durability
from server.processes.supervisor import ProcessEvent, ProcessEventKind, Supervisor
from server.storage import embedded
from server.storage.embedded import (
    DataDirInUseError,
    EmbeddedStore,
    EmbeddedStoreError,
    durability_problem,
)
from tests.looped import looped

pytestmark = pytest.mark.process
BOTH = pytest.mark.parametrize("durability", list(Durability))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data dir"  # with a space: the configuration must quote it


@pytest.fixture
def connect() -> Iterator[Callable[[EmbeddedStore], redis.Redis]]:
    clients: list[redis.Redis] = []

    def open_client(store: EmbeddedStore) -> redis.Redis:
        clients.append(redis.Redis.from_url(store.url, decode_responses=True))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


Connect = Callable[[EmbeddedStore], redis.Redis]


def kill(store: EmbeddedStore) -> None:
    pid = store.pid
    assert pid is not None
    # The process is our child: the descriptor becomes readable when it has ended.
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    wait_readable(watch)
    os.close(watch)


def wait_readable(descriptor: int) -> None:
    readable, _, _ = select.select([descriptor], [], [], 10)
    assert readable


@pytest.mark.slow
@BOTH
def test_acknowledged_writes_survive_a_kill(
    data_dir: Path, connect: Connect, durability: Durability
) -> None:
    with EmbeddedStore(data_dir, durability=durability) as store:
        client = connect(store)
        pipeline = client.pipeline(transaction=False)
        for i in range(5_000):
            pipeline.incr("count")
            pipeline.hset("fields", f"f{i}", i)
        assert pipeline.execute()[-2] == 5_000

        kill(store)
        assert store.pid is None
        store.start()
        assert client.get("count") == "5000"
        assert client.hgetall("fields") == {f"f{i}": str(i) for i in range(5_000)}


@pytest.mark.slow
def test_a_kill_amid_writes_loses_none_that_was_acknowledged(
    data_dir: Path, connect: Connect
) -> None:
    acknowledged = 0
    enough = threading.Event()

    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        writer = connect(store)

        def write() -> None:
            nonlocal acknowledged
            try:
                while True:
                    acknowledged = int(writer.incr("count"))
                    if acknowledged == 200:
                        enough.set()
            except redis.ConnectionError:
                return

        thread = threading.Thread(target=write)
        thread.start()
        assert enough.wait(30)
        kill(store)
        thread.join(30)
        store.start()
        stored = int(connect(store).get("count") or 0)
    # The one write in flight may or may not have arrived.
    assert acknowledged >= 200
    assert stored in {acknowledged, acknowledged + 1}


@BOTH
def test_the_running_server_gives_the_durability_it_was_asked_for(
    data_dir: Path, connect: Connect, durability: Durability
) -> None:
    with EmbeddedStore(data_dir, durability=durability) as store:
        client = connect(store)
        told = [*client.config_get("*").items(), *client.info("persistence").items()]
        settings = {str(name): str(value) for name, value in told}
        assert durability_problem(settings, durability) is None
        assert settings["save"] == ""
        assert settings["maxmemory-policy"] == "noeviction"
        machine_problem = durability_problem(settings, Durability.MACHINE)
        assert (machine_problem is None) == (durability is Durability.MACHINE)


def test_a_clean_stop_keeps_the_data_and_frees_the_folder(data_dir: Path, connect: Connect) -> None:
    first = EmbeddedStore(data_dir, durability=Durability.PROCESS)
    first.start()
    first.start()  # already running: nothing to do
    connect(first).set("k", "v")
    first.stop()
    first.stop()
    assert first.pid is None

    with EmbeddedStore(data_dir, durability=Durability.MACHINE) as second:
        assert second.url == first.url
        assert connect(second).get("k") == "v"


def test_two_stores_do_not_share_a_folder(data_dir: Path) -> None:
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        other = EmbeddedStore(data_dir, durability=Durability.PROCESS)
        with pytest.raises(DataDirInUseError, match=rf"process {os.getpid()}\b"):
            other.start()
        assert store.pid is not None
        other.stop()


def test_a_store_whose_launcher_is_gone_still_holds_the_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_DEAD_HOLDER_TIMEOUT_S", 0.05)
    store = EmbeddedStore(data_dir, durability=Durability.PROCESS)
    store.start()
    store.close()  # as the launcher's death would
    (data_dir / "lock").write_text("not a process")
    with pytest.raises(DataDirInUseError):
        EmbeddedStore(data_dir, durability=Durability.PROCESS).start()
    store.stop()
    with EmbeddedStore(data_dir, durability=Durability.PROCESS):
        pass


LAUNCHER = """
import sys, pathlib
from server.storage.embedded import EmbeddedStore
from server.config.durability import Durability
store = EmbeddedStore(pathlib.Path(sys.argv[1]), durability=Durability.PROCESS)
store.start()
print(store.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_server_dies_with_a_killed_launcher_and_its_folder_is_free_at_once(
    data_dir: Path, connect: Connect
) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(data_dir)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as launcher:
        assert launcher.stdout is not None
        watch = os.pidfd_open(int(launcher.stdout.readline()))
        launcher.kill()
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        assert connect(store).ping()
    wait_readable(watch)
    os.close(watch)


async def test_a_supervisor_replaces_a_killed_store_and_its_data_is_there(data_dir: Path) -> None:
    store = EmbeddedStore(data_dir, durability=Durability.PROCESS)
    pids: asyncio.Queue[int] = asyncio.Queue()

    def on_event(event: ProcessEvent) -> None:
        if event.kind is ProcessEventKind.READY:
            pids.put_nowait(event.pid)

    supervisor = Supervisor([store.process_spec()], on_event=on_event)
    running = asyncio.create_task(supervisor.run())
    first = await asyncio.wait_for(pids.get(), 20)
    async with redis.asyncio.Redis.from_url(store.url) as client:
        await client.set("k", "v")
    os.kill(first, signal.SIGKILL)
    second = await asyncio.wait_for(pids.get(), 20)
    assert second != first
    async with redis.asyncio.Redis.from_url(store.url) as client:
        assert await client.get("k") == b"v"
        assert (await client.info("server"))["process_id"] == second
    supervisor.stop()
    await running
    store.close()
    with EmbeddedStore(data_dir, durability=Durability.PROCESS):
        pass


def test_only_the_owner_can_connect(data_dir: Path, connect: Connect) -> None:
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        path = data_dir / "store.sock"
        assert path.stat().st_mode & 0o077 == 0
        assert data_dir.stat().st_mode & 0o077 == 0
        assert connect(store).config_get("port") == {"port": "0"}


def test_a_port_is_opened_on_loopback_when_asked_for(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        EmbeddedStore(data_dir, durability=Durability.PROCESS, port=port),
        redis.Redis(host="127.0.0.1", port=port) as client,
    ):
        assert client.ping()


async def test_asyncio_clients_connect_by_the_same_url(data_dir: Path) -> None:
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        await store.ready()
        async with redis.asyncio.Redis.from_url(store.url) as client:
            assert await client.incr("n") == 1


def test_a_folder_with_a_long_name_gets_its_socket_elsewhere(
    tmp_path: Path, connect: Connect
) -> None:
    data_dir = tmp_path / ("x" * 120)
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        assert connect(store).ping()
        path = Path(store.url.removeprefix("unix://").removesuffix("?db=0"))
        assert data_dir not in path.parents
        assert path.parent.stat().st_mode & 0o077 == 0
        assert EmbeddedStore(data_dir, durability=Durability.PROCESS).url == store.url
    assert not path.parent.exists()


def test_a_temporary_folder_with_a_long_name_does_not_matter(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with EmbeddedStore(long / "data", durability=Durability.PROCESS) as store:
        assert connect(store).ping()
        assert str(long) not in store.url


def test_a_store_that_cannot_start_quotes_the_servers_log(data_dir: Path) -> None:
    folder = data_dir / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    store = EmbeddedStore(data_dir, durability=Durability.PROCESS)
    with pytest.raises(EmbeddedStoreError, match=r"ended with status 1: .*manifest"):
        store.start()
    (folder / "appendonly.aof.manifest").unlink()
    with store:
        assert store.pid is not None


def test_an_append_only_file_cut_in_the_middle_of_a_write_loads(
    data_dir: Path, connect: Connect
) -> None:
    with EmbeddedStore(data_dir, durability=Durability.PROCESS) as store:
        connect(store).set("k", "v")
    (tail,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    with tail.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nx")
    with store:
        client = connect(store)
        assert client.get("k") == "v"
        assert client.get("x") is None


def test_starting_outside_the_main_thread_is_refused(data_dir: Path) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            EmbeddedStore(data_dir, durability=Durability.PROCESS).start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


GOOD = {"appendonly": "yes", "appendfsync": "no", "no-appendfsync-on-rewrite": "no"}


@looped(
    "settings, for_process, for_machine",
    [
        (GOOD, None, "appendfsync is no"),
        (GOOD | {"appendfsync": "always"}, None, None),
        (GOOD | {"appendfsync": "everysec"}, "two seconds", "power loss"),
        (
            GOOD | {"appendfsync": "always", "no-appendfsync-on-rewrite": "yes"},
            None,
            "no-appendfsync-on-rewrite",
        ),
        (GOOD | {"appendonly": "no"}, "appendonly is off", "appendonly is off"),
        ({}, "does not tell whether appendonly", "does not tell whether appendonly"),
        ({"aof_enabled": "0"}, "appendonly is off", "appendonly is off"),
        ({"aof_enabled": "1"}, "does not tell appendfsync", "does not tell appendfsync"),
        ({"aof_enabled": "1", "appendfsync": "always"}, None, None),
        (GOOD | {"aof_last_write_status": "err"}, "last write", "last write"),
    ],
)
def test_durability_problem_names_the_setting(
    settings: dict[str, str], for_process: str | None, for_machine: str | None
) -> None:
    for durability, expected in [
        (Durability.PROCESS, for_process),
        (Durability.MACHINE, for_machine),
    ]:
        problem = durability_problem(settings, durability)
        assert (problem is None) == (expected is None)
        assert problem is None or str(expected) in problem
