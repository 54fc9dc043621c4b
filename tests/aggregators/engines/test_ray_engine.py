"""What the Ray engine starts is gone when it is closed, and a cluster that is not there is told."""

import signal
import subprocess
from typing import Final

import psutil
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")

from aggregators.engines import ray_engine  # noqa: E402
from aggregators.engines.engine import make_engine  # noqa: E402
from aggregators.engines.engine_options import EngineOptions  # noqa: E402
from aggregators.errors import AggregationError  # noqa: E402
from tests.aggregators.matrices import honest_rows, same_bits  # noqa: E402

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(400)]

NOBODY: Final = "127.0.0.1:1"


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_cluster_of_its_own_leaves_nothing_behind() -> None:
    before, handler = children(), signal.getsignal(signal.SIGTERM)
    engine = make_engine("ray", EngineOptions(ray_workers=2))
    matrix = honest_rows(1, 5, 10_000)
    rows = engine.rows(list(matrix))
    assert same_bits(rows.read(0, 10_000), matrix)
    assert children() - before
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(AggregationError, match="has joined a Ray cluster already"):
        make_engine("ray")
    engine.close()
    psutil.wait_procs([psutil.Process(pid) for pid in children() - before], timeout=20)
    assert not children() - before
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_told_in_a_line() -> None:
    with pytest.raises(AggregationError, match=f"engine ray: no cluster at {NOBODY}: "):
        make_engine("ray", EngineOptions(ray_address=NOBODY))


def test_a_start_that_took_too_long_is_cleaned_up_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def slow(**_: object) -> None:
        started.append(subprocess.Popen(["sleep", "300"]))
        if len(started) == 1:
            message = "The current node timed out during startup."
            raise Exception(message)  # as Ray does

    monkeypatch.setattr(ray, "init", slow)
    ray_engine._start(1)
    first, second = started
    assert first.wait(timeout=20) == -signal.SIGKILL
    assert second.poll() is None
    second.kill()
    second.wait()
