import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.serve.service import ReadyPipe, Service, server_template
from server.config import ServerConfig, parse_config
from server.processes.child_process import module_of
from server.processes.supervisor import ProcessEvent, ProcessEventKind
from server.processes.template import Template
from server.storage.embedded import DataDirInUseError

METRICS = "PROMETHEUS_MULTIPROC_DIR"


def _config(folder: Path, url: str = "embedded") -> ServerConfig:
    tree = {
        "tls": {"insecure": True},
        "store": {"url": url, "data-dir": str(folder)},
        "task": [{"name": "digits", "initial-model": "digits.safetensors"}],
    }
    return parse_config(tree, {})


@pytest.fixture
def template() -> Iterator[Template]:
    with server_template({}) as one:
        yield one


def test_the_store_starts_before_the_workers_that_need_it(
    tmp_path: Path, template: Template
) -> None:
    with Service(tmp_path / "c.toml", _config(tmp_path), workers=2, template=template) as service:
        stages = {spec.name: spec.stage for spec in service.specs}
        assert stages == {"store": 0, "coordinator-1": 2, "coordinator-2": 2}
        for spec in service.specs[1:]:
            module, arguments = module_of(spec.command)
            assert module == "server.worker"
            assert spec.forker is template
            command = dict(zip(arguments[::2], arguments[1::2], strict=True))
            assert command["--config"] == str(tmp_path / "c.toml")
            assert command["--store-url"] == service.store_url
            assert int(command["--ready-fd"]) in spec.pass_fds
            assert "MALLOC_ARENA_MAX" in {**spec.environment, **os.environ}


def test_an_external_store_is_not_started(tmp_path: Path, template: Template) -> None:
    url = "redis://localhost:1/0"
    with Service(
        tmp_path / "c.toml", _config(tmp_path, url), workers=1, template=template
    ) as service:
        assert [spec.name for spec in service.specs] == ["coordinator-1"]
        assert service.store_url == url


def test_a_data_folder_has_one_service(tmp_path: Path, template: Template) -> None:
    first = Service(tmp_path / "c.toml", _config(tmp_path), workers=1, template=template)
    second = Service(tmp_path / "c.toml", _config(tmp_path), workers=1, template=template)
    with first, pytest.raises(DataDirInUseError):
        second.__enter__()
    with second:
        pass


def test_several_workers_share_a_metrics_folder_for_as_long_as_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Template
) -> None:
    monkeypatch.delenv(METRICS, raising=False)
    with Service(tmp_path / "c.toml", _config(tmp_path), workers=2, template=template):
        folder = Path(os.environ[METRICS])
        assert list(folder.iterdir()) == []
    assert METRICS not in os.environ
    assert not folder.exists()


def test_a_metrics_folder_that_was_set_before_is_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Template
) -> None:
    monkeypatch.setenv(METRICS, str(tmp_path))
    with Service(tmp_path / "c.toml", _config(tmp_path), workers=2, template=template):
        assert os.environ[METRICS] != str(tmp_path)
    assert os.environ[METRICS] == str(tmp_path)


def test_it_knows_which_processes_run(tmp_path: Path, template: Template) -> None:
    service = Service(
        tmp_path / "c.toml", _config(tmp_path), workers=1, template=template, log_dir=tmp_path
    )
    assert service.log_path("coordinator-1") == tmp_path / "coordinator-1.log"
    for kind, pid in ((ProcessEventKind.STARTED, 7), (ProcessEventKind.READY, 7)):
        service.observe(ProcessEvent(kind=kind, name="store", pid=pid))
    assert service.pids == {"store": 7}
    service.observe(ProcessEvent(kind=ProcessEventKind.EXITED, name="store", pid=7, exit_code=0))
    assert service.pids == {}


async def test_a_ready_pipe_tells_of_every_start_once() -> None:
    pipe = ReadyPipe()
    try:
        for _ in range(2):
            waiting = asyncio.create_task(pipe.ready())
            await asyncio.sleep(0)
            assert not waiting.done()
            os.write(pipe.write_fd, b"\n")
            await waiting
    finally:
        pipe.close()
