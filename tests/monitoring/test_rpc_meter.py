"""The RPC meter: what it counts, and that peers cannot create series."""

from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from monitoring.rpc_meter import RpcMeter

CHECK_IN = "/fedagg.v1.Federation/CheckIn"


def series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


def test_counts_by_method_and_code() -> None:
    registry = CollectorRegistry()
    meter = RpcMeter(Metrics.declare(registry), [CHECK_IN])
    meter.observe(CHECK_IN, "OK", 0.02)
    meter.observe(CHECK_IN, "OK", 0.2)
    meter.observe(CHECK_IN, "NOT_FOUND", 0.5)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"method": CHECK_IN, **labels})

    assert value("federated_rpc_requests_total", code="OK") == 2
    assert value("federated_rpc_requests_total", code="NOT_FOUND") == 1
    assert value("federated_rpc_duration_seconds_count") == 3
    assert value("federated_rpc_duration_seconds_bucket", le="0.1") == 1
    assert value("federated_rpc_duration_seconds_bucket", le="0.5") == 3


def test_unknown_methods_share_one_series() -> None:
    registry = CollectorRegistry()
    meter = RpcMeter(Metrics.declare(registry), [CHECK_IN])
    meter.observe("/made/up0", "UNIMPLEMENTED", 0.0)
    before = series(registry)
    for number in range(1, 50):
        meter.observe(f"/made/up{number}", "UNIMPLEMENTED", 0.0)
    assert series(registry) == before
    other = {"method": "other", "code": "UNIMPLEMENTED"}
    assert registry.get_sample_value("federated_rpc_requests_total", other) == 50
