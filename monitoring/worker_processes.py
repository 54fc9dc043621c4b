"""Memory, CPU and files of every worker process, for scrapes that any one of them may answer."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.registry import Collector

# prometheus_client names the value files of gauges with a live mode like this.
_LIVE_GAUGE_FILE: Final = re.compile(r"gauge_live[a-z]+_(?P<pid>[0-9]+)\.db")


class WorkerProcessCollector(Collector):
    """Yields the `process_*` metrics once for each live worker, with a `pid` label.

    A worker is live while its live-gauge files exist: `forget_process` removes them.
    """

    def __init__(self, registry: CollectorRegistry, directory: Path) -> None:
        self._directory = directory
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Read /proc for every live worker and yield each metric with a sample per worker."""
        families: dict[str, Metric] = {}
        for pid in sorted(self._live_pids()):
            for family in _process_metrics(pid):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, so that registration does not read /proc."""
        # Registration would otherwise collect once, reading /proc for nothing.
        yield from ()

    def _live_pids(self) -> set[int]:
        matches = (_LIVE_GAUGE_FILE.fullmatch(path.name) for path in self._directory.iterdir())
        return {int(match["pid"]) for match in matches if match is not None}


def _process_metrics(pid: int) -> Iterator[Metric]:
    """Return the metrics of one process; nothing where it has died or there is no /proc."""
    yield from ProcessCollector(pid=lambda: pid, registry=CollectorRegistry()).collect()
