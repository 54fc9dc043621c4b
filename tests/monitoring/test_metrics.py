"""Metrics: names and labels, both process modes, and the document made from them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from monitoring import metrics_table
from monitoring.metrics import Metrics, create_registry, declared_metrics, exposition

ROOT = Path(__file__).parents[2]
ALLOWED_LABELS = {"task", "phase", "reason", "outcome", "method", "code", "decision", "rule"} | {
    "operation",
    "holder",
    "kind",
    "mode",
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_label_is_bounded() -> None:
    for name, metric in declared_metrics().items():
        assert set(metric.spec.labels) <= ALLOWED_LABELS, name


def test_names_follow_the_conventions() -> None:
    for name, metric in declared_metrics().items():
        assert re.fullmatch(r"federated_[a-z0-9]+(_[a-z0-9]+)*", name)
        assert name.endswith("_total") == (metric.kind is Counter), name
        assert metric.spec.help.endswith("."), name
        # Prometheus reserves these suffixes for the series of a histogram.
        assert not name.endswith(("_count", "_sum", "_bucket")), name
        if metric.kind is Gauge:
            assert metric.spec.workers != "sum", name
        if metric.kind is Histogram:
            assert list(metric.spec.buckets) == sorted(set(metric.spec.buckets)), name


def test_fields_are_built_as_annotated() -> None:
    metrics = Metrics.declare(CollectorRegistry())
    for name, metric in declared_metrics().items():
        assert type(getattr(metrics, name.removeprefix("federated_"))) is metric.kind


def test_exposition_shows_what_was_counted() -> None:
    registry = create_registry()
    metrics = Metrics.declare(registry)
    metrics.updates_accepted_total.labels(task="digits").inc()
    metrics.updates_accepted_total.labels(task="digits").inc(2)
    metrics.leader.labels(task="digits").set(1)
    metrics.round_duration_seconds.labels(task="digits").observe(7.5)
    found = samples_of(exposition(registry).decode())
    digits = ("task", "digits")
    assert found["federated_updates_accepted_total", (digits,)] == 3
    assert found["federated_leader", (digits,)] == 1
    assert found["federated_round_duration_seconds_bucket", (("le", "5.0"), digits)] == 0
    assert found["federated_round_duration_seconds_bucket", (("le", "10.0"), digits)] == 1
    assert found["federated_round_duration_seconds_sum", (digits,)] == 7.5
    assert found["process_resident_memory_bytes", ()] > 1e6


def test_a_registry_takes_the_metrics_once() -> None:
    registry = CollectorRegistry()
    Metrics.declare(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics.declare(registry)


def test_registries_do_not_share_values() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics.declare(first).uploads_in_flight.inc()
    Metrics.declare(second)
    assert samples_of(exposition(first).decode())["federated_uploads_in_flight", ()] == 1
    assert samples_of(exposition(second).decode())["federated_uploads_in_flight", ()] == 0


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/Metrics.md").read_text(encoding="utf-8") == metrics_table.render()


WORKER = """
import os, sys
from monitoring.metrics import Metrics, create_registry, exposition, forget_process
metrics = Metrics.declare(create_registry())
metrics.updates_accepted_total.labels(task="digits").inc(int(sys.argv[1]))
metrics.uploads_in_flight.set(int(sys.argv[1]))
metrics.model_version.labels(task="digits").set(int(sys.argv[1]))
metrics.leader.labels(task="digits").set(int(sys.argv[1]) == 5)
print(os.getpid(), flush=True)
sys.stdin.read()
"""

SCRAPER = """
import sys
from monitoring.metrics import Metrics, create_registry, exposition, forget_process
registry = create_registry()
Metrics.declare(registry)
for pid in sys.argv[1:]:
    forget_process(int(pid))
sys.stdout.buffer.write(exposition(registry))
"""


def scrape(directory: Path, *dead_pids: str) -> Samples:
    done = subprocess.run(
        [sys.executable, "-c", SCRAPER, *dead_pids],
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory)},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert done.stderr == b""
    return samples_of(done.stdout.decode())


@pytest.mark.slow
def test_workers_of_one_host_are_merged(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, amount],
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for amount in ("2", "5")
    ]
    pids = []
    try:
        for worker in workers:
            assert worker.stdout is not None
            pids.append(worker.stdout.readline().strip())
        digits = ("task", "digits")
        both = scrape(tmp_path)
        assert both["federated_updates_accepted_total", (digits,)] == 7
        assert both["federated_uploads_in_flight", ()] == 7
        assert both["federated_leader", (digits,)] == 1
        assert both["federated_model_version", (digits,)] in {2, 5}
        for pid in pids:
            assert both["process_resident_memory_bytes", (("pid", pid),)] > 1e6
    finally:
        for worker in workers:
            worker.communicate()

    after = scrape(tmp_path, pids[1])
    # The dead leader's gauges are gone, its counts are not.
    assert after["federated_updates_accepted_total", (digits,)] == 7
    assert after["federated_uploads_in_flight", ()] == 2
    assert after["federated_leader", (digits,)] == 0
    assert ("process_resident_memory_bytes", (("pid", pids[1]),)) not in after
