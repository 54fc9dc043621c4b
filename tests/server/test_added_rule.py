"""CONTRIBUTING shows how a rule is added: one file and one row. A server then takes it."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aggregators.registry import RULES
from aggregators.traits import Traits
from server.config import ConfigError, parse_config
from server.task.aggregation_settings import aggregation_settings, aggregator_config
from tests.server.round.stepping import plain_step
from tests.server.round.test_plain_source import BASE, BASE_VALUES, contribution, values_of
from updates.codec import encode_dense

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAME = "midrange"


def added(path: str) -> str:
    """Read what the page's diff adds to a file."""
    start = rf"\+\+\+ b/{re.escape(path)}\n@@.*?\n"
    found = re.search(start + r"(.*?)(?:```|diff --git)", PAGE, re.DOTALL)
    assert found is not None
    return "".join(f"{line[1:]}\n" for line in found[1].splitlines() if line.startswith("+"))


@pytest.fixture
def midrange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the page's diff."""
    module = ModuleType(f"aggregators.rules.{NAME}")
    exec(added(f"aggregators/rules/{NAME}.py"), module.__dict__)  # noqa: S102  # the page's own
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known = {"Traits": Traits, "_none": lambda _num_rows, _num_byzantine: 0}
    row = eval(f"{{{added('aggregators/registry.py')}}}", known)  # noqa: S307  # likewise
    monkeypatch.setitem(RULES, NAME, row[NAME])


def task_tree(**changes: Any) -> dict[str, Any]:
    task = {"name": "t", "initial-model": "m", "reporting-goal": 3, "aggregation": {"rule": NAME}}
    return {"tls": {"insecure": True}, "task": [task | changes]}


@pytest.mark.usefixtures("midrange")
def test_a_rule_of_one_file_and_one_row_runs_in_a_server() -> None:
    (task,) = parse_config(task_tree(), {}).tasks
    settings = aggregation_settings(task, aggregator_config(task), dim=4, privacy=None)
    rows = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [9, 8, 7, 6]], np.float32)
    payloads = [encode_dense(row) for row in rows]
    contributions = [contribution(f"d{i}", payload) for i, payload in enumerate(payloads)]
    built = plain_step(BASE, contributions, payloads, settings)
    expected = BASE_VALUES + (rows.min(axis=0) + rows.max(axis=0)) / 2
    np.testing.assert_allclose(values_of(built.data), expected, rtol=1e-6)


@pytest.mark.usefixtures("midrange")
def test_its_row_tells_the_settings_where_it_cannot_be_used() -> None:
    shared = {
        "mode": "shared",
        "plan": {"clipping-norm": 1.0},
        "sharing": {"committee": "committee.json"},
    }
    with pytest.raises(ConfigError, match="midrange needs single updates or groups"):
        parse_config(task_tree(**shared), {})


def test_without_the_row_there_is_no_such_rule() -> None:
    (task,) = parse_config(task_tree(), {}).tasks
    with pytest.raises(ValueError, match="rule='midrange' must be one of aegis"):
        aggregator_config(task)
