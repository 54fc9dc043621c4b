"""Every metric of the service, declared in one place.

Labels are bounded: a task is one the operator configured (`UNKNOWN_TASK` stands for every other
name a peer may send), a method is one the server registered, a reason or decision is a member of
an enum. A device id is never a label: it is unbounded, and it is personal data.

Two modes, chosen by prometheus_client when it is first imported:

- single process: values live in the process, `exposition` renders the given registry;
- several worker processes on one host: with `PROMETHEUS_MULTIPROC_DIR` set to an empty directory
  before the import, values live in files there and `exposition` merges all of them, whichever
  worker answers the scrape. The parent calls `forget_process` when a worker has died.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_type_hints

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from monitoring.worker_processes import WorkerProcessCollector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_TASK: Final = "unknown"
PREFIX: Final = "federated_"  # of every name, a share holder's too

_MULTIPROCESS_ENV: Final = "PROMETHEUS_MULTIPROC_DIR"

# Seconds. A check-in may be held for 60 s, an upload of a large model takes minutes.
_RPC_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300)
_STORE_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5)
_KERNEL_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
_ROUND_BUCKETS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400, 86_400)
Merge = Literal["sum", "livemax", "livesum", "mostrecent"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric's type does not say.

    Attributes:
        help: one sentence for the exposition and the documentation.
        labels: label names.
        workers: how the values of several workers become one: always "sum" but for gauges.
        buckets: for histograms, upper bounds in the metric's unit, ascending.
    """

    help: str
    labels: tuple[str, ...] = ()
    workers: Merge = "sum"
    buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """All metrics; the exposed name of a field is `PREFIX` followed by the field's name.

    A counter increment on a child kept by the caller costs about 0.6 us, `labels(...)` about
    1.6 us more: hot paths keep their children (see `RpcMeter`).
    """

    rpc_requests_total: Annotated[
        Counter,
        MetricSpec("Finished RPCs by method and gRPC status code.", labels=("method", "code")),
    ]
    rpc_duration_seconds: Annotated[
        Histogram,
        MetricSpec(
            "Time from the arrival of an RPC to its status.",
            labels=("method",),
            buckets=_RPC_BUCKETS,
        ),
    ]
    check_ins_total: Annotated[
        Counter,
        MetricSpec(
            "Answered check-ins: assigned, or the reason to retry later.",
            labels=("task", "outcome"),
        ),
    ]
    uploads_in_flight: Annotated[
        Gauge, MetricSpec("Uploads being received now.", workers="livesum")
    ]
    updates_accepted_total: Annotated[
        Counter, MetricSpec("Updates acknowledged as durable and counted once.", labels=("task",))
    ]
    updates_refused_total: Annotated[
        Counter, MetricSpec("Updates refused, by error reason.", labels=("task", "reason"))
    ]
    update_payload_bytes_total: Annotated[
        Counter, MetricSpec("Payload bytes of accepted updates, without framing.", labels=("task",))
    ]
    update_dense_bytes_total: Annotated[
        Counter,
        MetricSpec(
            "Bytes that accepted updates would have had uncompressed, as float32.",
            labels=("task",),
        ),
    ]
    model_download_bytes_total: Annotated[
        Counter, MetricSpec("Model bytes sent to devices.", labels=("task",))
    ]
    updates_clipped_total: Annotated[
        Counter,
        MetricSpec("Contributions whose norm exceeded the clipping norm.", labels=("task",)),
    ]
    updates_excluded_total: Annotated[
        Counter,
        MetricSpec("Contributions the aggregation rule gave no weight.", labels=("task", "rule")),
    ]
    aggregate_l2_norm: Annotated[
        Gauge,
        MetricSpec("L2 norm of the latest aggregate.", labels=("task",), workers="mostrecent"),
    ]
    aggregation_duration_seconds: Annotated[
        Histogram,
        MetricSpec(
            "Time of one aggregation, reading the contributions included.",
            labels=("task", "rule"),
            buckets=_KERNEL_BUCKETS,
        ),
    ]
    round: Annotated[
        Gauge,
        MetricSpec("Number of the latest opened round.", labels=("task",), workers="mostrecent"),
    ]
    round_phase: Annotated[
        Gauge,
        MetricSpec(
            "1 for the phase the latest round is in, 0 for the others.",
            labels=("task", "phase"),
            workers="mostrecent",
        ),
    ]
    phase_transitions_total: Annotated[
        Counter, MetricSpec("Phases entered.", labels=("task", "phase"))
    ]
    rounds_finished_total: Annotated[
        Counter,
        MetricSpec(
            "Finished rounds by decision: published or abandoned.", labels=("task", "decision")
        ),
    ]
    round_duration_seconds: Annotated[
        Histogram,
        MetricSpec(
            "Time from the opening of a round to its end.", labels=("task",), buckets=_ROUND_BUCKETS
        ),
    ]
    model_version: Annotated[
        Gauge, MetricSpec("Current model version.", labels=("task",), workers="mostrecent")
    ]
    rollbacks_total: Annotated[
        Counter, MetricSpec("Returns to an earlier model version.", labels=("task",))
    ]
    leader: Annotated[
        Gauge,
        MetricSpec(
            "1 where a live process of this host drives the task's rounds.",
            labels=("task",),
            workers="livemax",
        ),
    ]
    store_roundtrip_seconds: Annotated[
        Histogram,
        MetricSpec("Time of one pipeline to the round store.", buckets=_STORE_BUCKETS),
    ]
    enrollments_total: Annotated[
        Counter, MetricSpec("Enrollment calls: issued, or the error reason.", labels=("outcome",))
    ]
    share_holder_up: Annotated[
        Gauge,
        MetricSpec(
            "1 where the share holder answered the leader's last call.",
            labels=("task", "holder"),
            workers="mostrecent",
        ),
    ]
    share_holder_refusals_total: Annotated[
        Counter,
        MetricSpec(
            "Calls that a share holder refused, by error reason.",
            labels=("task", "holder", "reason"),
        ),
    ]
    share_holder_lies_total: Annotated[
        Counter,
        MetricSpec(
            "Finished rounds in which a share holder was caught with wrong shares.",
            labels=("task", "holder"),
        ),
    ]
    shares_relayed_total: Annotated[
        Counter,
        MetricSpec(
            "Shares handed to a share holder: stored, or the error reason.",
            labels=("task", "holder", "outcome"),
        ),
    ]
    shared_statements_total: Annotated[
        Counter,
        MetricSpec(
            "Statements that share holders made: vote, coin, openings, blame, commitment or sum.",
            labels=("task", "holder", "kind"),
        ),
    ]
    shared_members_excluded_total: Annotated[
        Counter,
        MetricSpec(
            "Updates of finished shared rounds that are in no sum, by reason.",
            labels=("task", "reason"),
        ),
    ]
    shared_rounds_degraded_total: Annotated[
        Counter,
        MetricSpec(
            "Finished shared rounds with fewer checks than configured, by mode.",
            labels=("task", "mode"),
        ),
    ]
    privacy_epsilon_spent: Annotated[
        Gauge,
        MetricSpec(
            "Epsilon spent by charged rounds, at the task's delta; infinite: no bound holds.",
            labels=("task",),
            workers="mostrecent",
        ),
    ]
    privacy_epsilon_budget: Annotated[
        Gauge,
        MetricSpec("Epsilon that may be spent.", labels=("task",), workers="mostrecent"),
    ]
    privacy_rounds_committed: Annotated[
        Gauge,
        MetricSpec("Rounds charged to the privacy budget.", labels=("task",), workers="mostrecent"),
    ]
    privacy_rounds_reserved: Annotated[
        Gauge,
        MetricSpec("Open rounds whose charge is reserved.", labels=("task",), workers="mostrecent"),
    ]
    privacy_budget_exhausted: Annotated[
        Gauge,
        MetricSpec(
            "1 where the budget allows no further round.", labels=("task",), workers="mostrecent"
        ),
    ]
    privacy_clipping_norm: Annotated[
        Gauge,
        MetricSpec(
            "Clipping norm of the next round, where it adapts.",
            labels=("task",),
            workers="mostrecent",
        ),
    ]
    audit_entries_total: Annotated[
        Counter, MetricSpec("Lines appended to the audit log.", labels=("task",))
    ]

    @classmethod
    def declare(cls, registry: CollectorRegistry) -> Self:
        """Create every metric on `registry`.

        Raises:
            ValueError: if the registry already holds one of them.
        """
        built = {
            name.removeprefix(PREFIX): _build(name, declaration, registry)
            for name, declaration in declared_metrics().items()
        }
        # Each field is built as the type it is annotated with, which mypy cannot follow.
        return cls(**built)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Declaration:
    """One metric as declared in `Metrics`."""

    kind: type[Counter | Gauge | Histogram]
    spec: MetricSpec


def declared_metrics() -> dict[str, Declaration]:
    """Return every metric's exposed name and declaration, in the order of `Metrics`."""
    hints = get_type_hints(Metrics, include_extras=True)
    return {
        PREFIX + name: Declaration(hint.__origin__, hint.__metadata__[0])
        for name, hint in hints.items()
    }


def create_registry() -> CollectorRegistry:
    """Return a registry that already observes the process: memory, CPU, files, collections."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Render the metrics in the Prometheus text format (`CONTENT_TYPE`).

    With several workers the values of all of them are merged, and the `process_*` series of each
    live worker carry its `pid`.

    Cost: milliseconds; with several workers it reads one small file for each worker and kind.
    """
    directory = os.environ.get(_MULTIPROCESS_ENV)
    if directory is None:
        return generate_latest(registry)
    merged = CollectorRegistry()
    MultiProcessCollector(merged, path=directory)  # type: ignore[no-untyped-call]  # untyped library
    WorkerProcessCollector(merged, Path(directory))
    return generate_latest(merged)


def forget_process(pid: int) -> None:
    """Drop the gauges of a dead worker; its counters stay, so that totals never fall.

    Does nothing in single-process mode.
    """
    directory = os.environ.get(_MULTIPROCESS_ENV)
    if directory is not None:
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]  # untyped library


def _build(
    name: str, declaration: Declaration, registry: CollectorRegistry
) -> Counter | Gauge | Histogram:
    kind, spec = declaration.kind, declaration.spec
    if issubclass(kind, Histogram):
        return kind(name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)
    if issubclass(kind, Gauge):
        return kind(name, spec.help, spec.labels, registry=registry, multiprocess_mode=spec.workers)
    return kind(name, spec.help, spec.labels, registry=registry)
