"""docs/Aggregation.md says of every rule and step what the code says."""

import re
from pathlib import Path

import numpy as np
import pytest

from aggregators.errors import TooFewUpdatesError
from aggregators.registry import RULES, STEPS
from aggregators.rules.krum import krum

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "Aggregation.md").read_text()
YES_NO = {True: "yes", False: "no"}


def table(header: str) -> dict[str, list[str]]:
    """Read the table whose first column is `header`: cells by the name in that column."""
    _, _, rest = PAGE.partition(f"| {header} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def test_every_rule_is_listed_once() -> None:
    assert sorted(table("rule")) == sorted(RULES)


def test_every_step_is_listed_once() -> None:
    assert sorted(table("step")) == sorted(STEPS)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_needs_and_moves_as_it_is_said_to(rule: str) -> None:
    traits = RULES[rule]
    needs, _, translation, scale, *_ = table("rule")[rule]
    assert (translation, scale) == (YES_NO[traits.translation], YES_NO[traits.scale])
    if traits.tolerance is not None:
        least = f"n >= {traits.tolerance.per_byzantine} f + {traits.tolerance.base}"
        assert needs.startswith(least)
    assert ("root update" in needs) == ("root_update" in traits.needs)
    assert ("probe outputs" in needs) == ("probe_outputs" in traits.needs)


def test_the_message_of_a_violated_constraint_is_the_one_shown() -> None:
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    with pytest.raises(TooFewUpdatesError) as raised:
        krum(np.ones((10, 2), dtype=np.float32), num_byzantine=4)
    assert str(raised.value) == " ".join(shown.group(1).split())


def test_the_example_runs_as_it_is_said_to() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {"print": [].append}
    exec(code.group(1), names)  # noqa: S102 -- the page's own example
    assert getattr(names["result"], "selected").tolist() == [False] * 3 + [True] * 7  # noqa: B009
