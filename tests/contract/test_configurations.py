"""What the check calls valid starts, and its first round takes the updates that it asks for.

Every sample, with one setting after the other changed: it is refused in words of our own, or it
opens, and the rule combines as many updates as a round of the task brings.
"""

import asyncio
import copy
import random
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from aggregators.base import Update
from aggregators.byzantine import ByzantineRobustAggregator
from cli.holder.committee_files import CommitteePlan, write_committee
from cli.main import app
from server.app import build_server
from server.config import ConfigError, HolderConfig, ServerConfig, parse_config
from server.config.loading import parse_holder_config
from server.config.reading import section_kind, setting_paths
from server.config.section import Section
from server.holder.app import build_holder
from server.holder.preparation import prepare_holder
from server.preparation import PreparedServer, prepare_server
from server.processes.thread_pool import Workers
from updates.vectors import encode_model

Tree = dict[str, Any]

SAMPLES: Final = Path(__file__).parents[2] / "docs/samples"
NAMES: Final = tuple(path.name for path in sorted(SAMPLES.glob("*.toml")))
NUMBERS: Final = (-1, 0, 1, 2, 3, 7, 8, 11, 64, 1000, 1e-40, 0.1, 0.5, 1.0, 1.5, 1e9, 1 << 40)
TEXTS: Final = ("", "x", "127.0.0.1:0", "::1", "redis://h/x", "rediss+sentinel://a", "1.2")
RULES: Final = ("mean", "median", "krum", "multi-krum", "bulyan", "fltrust", "nnm+trimmed-mean")
FOREIGN: Final = ("pydantic", "Input should", "_", "\n")
TLS_FILES: Final = {
    "certificate": "server.pem",
    "private-key": "server-key.pem",
    "client-ca": "ca.pem",
}
MOST_ROWS: Final = 64
STARTED: Final = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the samples name."""
    folder = tmp_path_factory.mktemp("place")
    addresses = [f"127.0.0.1:{port}" for port in range(1, 6)]
    write_committee(CommitteePlan(threshold=3, addresses=addresses), folder, [])
    model = {"w": np.zeros((10, 30), np.float32), "b": np.zeros(10, np.float32)}
    (folder / "model.safetensors").write_bytes(encode_model(model))
    command = ["admin", "create-ca", "--out", str(folder / "tls"), "--server-name", "localhost"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return folder


def _sample(name: str, place: Path, data: Path) -> Tree:
    """A sample whose files are those of the place, and which listens on free ports."""
    tree = tomllib.loads((SAMPLES / name).read_text(encoding="utf-8"))
    tree["listen"] = {
        key: "127.0.0.1:0" if value and isinstance(value, str) else value
        for key, value in tree["listen"].items()
    }
    for key, file in TLS_FILES.items():
        if key in tree["tls"]:
            tree["tls"][key] = str(place / "tls" / file)
    if "holder" in tree:
        tree["holder"] |= {
            "committee": str(place / "committee.json"),
            "keys": str(place / "holder-1/keys.json"),
            "device-ca": str(place / "ca.pem"),
            "data-dir": str(data),
        }
        return tree
    tree["store"] |= {"data-dir": str(data), "blobs": "", "allow-weaker-durability": True}
    for task in tree["task"]:
        task["initial-model"] = str(place / "model.safetensors")
        if task.get("mode") == "shared":
            task["sharing"]["committee"] = str(place / "committee.json")
        if "noise" in task.get("privacy", {}) and task["privacy"]["noise"] != "none":
            task["privacy"]["accountant"] = "rdp"  # in microseconds
    return tree


def _values(field: FieldInfo, path: str) -> list[Any]:
    """What a setting of this kind might be given."""
    if path.endswith("aggregation.rule"):
        return list(RULES)
    values: list[Any] = []
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            values += get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, Enum):
            values += [member.value for member in kind]
        elif kind is bool:
            values += [True, False]
        elif kind in {int, float}:
            values += NUMBERS
        elif isinstance(kind, type):
            values += TEXTS
    return values


def _field(kind: type[Section], path: str) -> FieldInfo:
    for key in path.split("."):
        field = next(one for one in kind.model_fields.values() if one.alias == key)
        kind = section_kind(field.annotation) or kind
    return field


def _changed(tree: Tree, path: str, value: object) -> Tree:
    changed = copy.deepcopy(tree)
    *sections, key = path.split(".")
    there: Any = changed
    for section in sections:
        there = there.setdefault(section, {})
        there = there[0] if isinstance(there, list) else there
    there[key] = value
    return changed


def _mutants(tree: Tree) -> Iterator[tuple[str, object, Tree]]:
    kind: type[Section] = HolderConfig if "holder" in tree else ServerConfig
    for path in setting_paths(kind):
        for value in _values(_field(kind, path), path):
            yield path, value, _changed(tree, path, value)


def _parsed(tree: Tree) -> ServerConfig | HolderConfig:
    if "holder" in tree:
        return parse_holder_config(tree, {})
    return parse_config(tree, {"FEDAGG__ADMIN__TOKEN": "x" * 16})


def _require_words(error: ConfigError, path: str) -> None:
    assert error.problems
    for problem in error.problems:
        assert ": " in problem, problem
        for word in FOREIGN:
            assert word not in problem.replace(path, ""), problem


def _require_first_round(opened: PreparedServer) -> None:
    """Combine as many updates as come in at most, and as few as a round is content with."""
    for task in opened.tasks:
        terms, byzantine = task.info.terms, task.aggregation.aggregator.byzantine
        if task.info.shared is not None or byzantine.may_degrade:
            continue
        for count in {terms.min_contributions, terms.reporting_goal}:
            if count <= MOST_ROWS:
                rows = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
                updates = [
                    Update(key=f"{place:03}", vector=row, num_samples=1)
                    for place, row in enumerate(rows)
                ]
                ByzantineRobustAggregator(byzantine).aggregate(updates)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_sample_is_refused_in_our_words_or_opens(
    name: str, place: Path, tmp_path: Path
) -> None:
    sample = _sample(name, place, tmp_path / "data")
    outcomes = {"refused": 0, "opened": 0}
    with closing(Workers("accountant", threads=1)) as accountants:
        for path, value, tree in _mutants(sample):
            try:
                config = _parsed(tree)
                if isinstance(config, HolderConfig):
                    prepare_holder(config)
                else:
                    opened = prepare_server(config, accountants=accountants, now_s=time.time())
                    _require_first_round(opened)
                outcomes["opened"] += 1
            except ConfigError as error:
                _require_words(error, path)
                outcomes["refused"] += 1
            except Exception as error:
                msg = f"{path} = {value!r}"
                raise AssertionError(msg) from error
    assert min(outcomes.values()) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
async def test_a_changed_sample_that_opens_starts(
    name: str, place: Path, tmp_path: Path, redis_url: str
) -> None:
    """Some of them, against a real store; which ones does not change from run to run."""
    sample = _sample(name, place, tmp_path / "data")
    mutants = list(_mutants(sample))
    random.Random(name).shuffle(mutants)  # a choice of tests
    started = 0
    stopping: list[asyncio.Task[None]] = []
    for path, value, tree in mutants:
        if started == STARTED:
            break
        if path.startswith("engines.") or value == "ray":
            continue
        try:
            config = _parsed(tree)
            if isinstance(config, HolderConfig):
                holder = build_holder(config)
                await holder.start()
                await holder.stop(0)
            else:
                server = await build_server(config, store_url=redis_url)
                await server.start()
                # One that has hardly begun takes a second to end; the next one starts meanwhile.
                stopping.append(asyncio.create_task(server.stop()))
            started += 1
        except ConfigError:
            continue
    await asyncio.gather(*stopping)
    assert started == STARTED
