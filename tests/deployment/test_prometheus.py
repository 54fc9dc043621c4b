import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from monitoring.metrics import declared_metrics
from tests.looped import looped

FOLDER: Final = Path(__file__).resolve().parents[2] / "monitoring" / "prometheus"
# Written by Prometheus itself when it scrapes or evaluates.
OWN_LABELS: Final = {"job", "instance", "le"}


def _rules(name: str = "rules.yml") -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((FOLDER / name).read_text())["groups"]:
        yield from group["rules"]


def _expressions() -> list[str]:
    return [rule["expr"] for rule in _rules()]


def _metric(series: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", series)


@looped("expression", _expressions())
def test_rules_use_only_declared_metrics_and_labels(expression: str) -> None:
    declared = declared_metrics()
    used = re.findall(r"\b(federated_\w+)(?:\{([^}]*)\})?", expression)
    labels = set(OWN_LABELS)
    for series, matchers in used:
        own = set(declared[_metric(series)].spec.labels)
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= own
        labels |= own
    grouped = {
        label.strip()
        for group in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in group.split(",")
    }
    assert grouped <= labels


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in _rules() if "alert" in rule]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_prometheus_loads_the_rules_and_scrapes_every_coordinator() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["/etc/prometheus/rules.yml"]
    job, *others = config["scrape_configs"]
    assert [other["job_name"] for other in others] == ["coordinator-shared", "share-holder"]
    assert job["job_name"] == "coordinator"
    assert job["dns_sd_configs"][0]["names"] == ["coordinator"]
