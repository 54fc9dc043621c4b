"""Settings that contradict each other are refused, each by its row, and nothing else is."""

import re
from typing import Any, Final

import pytest

from server.config import ConfigError, TaskConfig, parse_config, parse_holder_config
from server.config.contradictions import Contradiction
from server.config.holder_config import HolderConfig
from server.config.process_contradictions import HOLDER, PLACED_TASK, SERVER
from server.config.reading import setting_paths
from server.config.server_config import ServerConfig
from server.config.task_contradictions import TASK
from tests.looped import looped

Tree = dict[str, Any]

PLAIN: Final[Tree] = {"name": "digits", "initial-model": "model.safetensors", "reporting-goal": 20}
PRIVATE: Final = PLAIN | {"plan": {"clipping-norm": 1.0}, "privacy": {"noise": "central"}}
SHARED: Final = PLAIN | {
    "mode": "shared",
    "plan": {"clipping-norm": 1.0},
    "sharing": {"committee": "committee.json"},
}
SERVER_TREE: Final[Tree] = {
    "tls": {"insecure": True},
    "store": {"durability": "machine"},
    "task": [PLAIN],
}
HOLDER_TREE: Final[Tree] = {
    "holder": {
        "index": 1,
        "committee": "committee.json",
        "keys": "keys.json",
        "device-ca": "ca.pem",
        "data-dir": "data",
    },
    "tls": {"insecure": True},
}
FILES: Final = {"certificate": "c.pem", "private-key": "k.pem", "client-ca": "ca.pem"}
AUTHORITY: Final = {
    "ca-certificate": "ca.pem",
    "ca-private-key": "ca-key.pem",
    "token-key": "x" * 32,
}

POISSON: Final = {
    "noise": "central",
    "sampling": "poisson",
    "sampling-probability": 0.01,
    "population": 10_000,
}
FIXED: Final = {"noise": "central", "sampling": "fixed-size", "population": 1_000}
BANDED: Final = {"noise": "central", "mechanism": "banded", "bands": 8}
DEVICE: Final = {"noise": "device", "noise-multiplier": 0.001}
KRUM: Final = {"rule": "multi-krum", "num-malicious-nodes": 4}
REGULAR: Final = {"max-participations": 10, "min-rounds-between": 7}


def _merged(tree: Tree, changes: Tree) -> Tree:
    """Keys of a section are merged into it."""
    both = {
        key: {**tree[key], **value}
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(tree.get(key), dict)
    }
    return tree | changes | both


def _task(base: Tree, **changes: Any) -> Tree:
    task = _merged(base, {key.replace("_", "-"): value for key, value in changes.items()})
    return SERVER_TREE | {"task": [task]}


def _server(**changes: Any) -> Tree:
    return SERVER_TREE | changes


def _holder(**changes: Any) -> Tree:
    return _merged(HOLDER_TREE, changes)


ACCEPTED: Final[dict[str, Tree]] = {
    "plain": _task(PLAIN),
    "central": _task(PRIVATE),
    "poisson": _task(PRIVATE, privacy=POISSON),
    "fixed-size": _task(PRIVATE, privacy=FIXED, fairness=0),
    "banded": _task(PRIVATE, privacy=BANDED, **REGULAR),
    "adaptive clipping": _task(PRIVATE, privacy={"adaptive-clipping": True}),
    "a private selection": _task(PRIVATE, aggregation=KRUM),
    "noise of devices": _task(PRIVATE, privacy=DEVICE),
    "shared": _task(SHARED),
    "noise of holders": _task(SHARED, privacy={"noise": "holders"}),
    "a shared selection": _task(SHARED, aggregation=KRUM, sharing={"checks": "distances"}),
    "outliers": _task(
        SHARED, aggregation={"rule": "distance-outliers"}, sharing={"checks": "distances"}
    ),
    "a rule for groups": _task(
        SHARED, aggregation={"rule": "nnm+trimmed-mean"}, sharing={"group-size": 3}
    ),
    "groups without checks": _task(SHARED, sharing={"checks": "sum", "group-size": 3}),
    "rand-k of all": _task(SHARED, compression={"method": "rand-k"}),
    "announced for all": _task(SHARED, compression={"method": "announced"}),
    "projection for all": _task(SHARED, compression={"method": "projection"}),
    "tls": _server(tls=FILES, enrollment=AUTHORITY, listen={"enrollment": "127.0.0.1:50052"}),
    "others reach it": _server(listen={"http": "0.0.0.0:8080"}, admin={"token": "x" * 16}),
    "a holder": HOLDER_TREE,
    "a holder that knows its callers": _holder(
        tls=FILES | {"coordinators": ["c"], "insecure": False}
    ),
}

REFUSED: Final[dict[str, tuple[Tree, str]]] = {
    "keeping private updates": (
        _task(PRIVATE, keep_contributions=3),
        "task[1].keep-contributions: keeps what single devices sent",
    ),
    "f twice": (
        _task(PLAIN, aggregation=KRUM | {"malicious-fraction": 0.2}),
        "task[1].aggregation.malicious-fraction: and num-malicious-nodes both",
    ),
    "a share of updates that nobody sees": (
        _task(SHARED, aggregation={"malicious-fraction": 0.2}),
        "task[1].aggregation.malicious-fraction: is for plain tasks",
    ),
    "giving way in a private sum": (
        _task(PRIVATE, aggregation={"may-degrade": True}),
        "task[1].aggregation.may-degrade: has no meaning where",
    ),
    "giving way to a rule that counts zeros": (
        _task(
            PLAIN,
            aggregation=KRUM | {"may-degrade": True},
            compression={"method": "top-k", "ratio": 0.05},
        ),
        "task[1].aggregation.may-degrade: could take",
    ),
    "momentum of no optimizer": (
        _task(PLAIN, aggregation={"server-momentum": 0.5}),
        "task[1].aggregation.server-momentum: has no meaning with server-optimizer = fedavg",
    ),
    "a second moment that does not decay": (
        _task(PLAIN, aggregation={"server-beta2": 0.5, "server-optimizer": "fedadagrad"}),
        "task[1].aggregation.server-beta2: has no meaning with server-optimizer = fedadagrad",
    ),
    "adaptivity of nothing adaptive": (
        _task(PLAIN, aggregation={"server-adaptivity": 0.5, "server-optimizer": "fedavgm"}),
        "task[1].aggregation.server-adaptivity: has no meaning with server-optimizer = fedavgm",
    ),
    "neither tls nor not": (_server(tls={}), "tls: give certificate"),
    "half of tls": (_server(tls={"insecure": True, "client-ca": "c"}), "tls: certificate, private"),
    "both": (_server(tls=FILES | {"insecure": True}), "tls.insecure: is true, and"),
    "gateways in the clear": (
        _server(tls={"insecure": True, "gateways": ["g"]}),
        "tls.gateways: are told by their certificates",
    ),
    "two of three enrollment keys": (
        _server(enrollment={"ca-certificate": "c", "token-key": "t" * 32}),
        "enrollment: ca-certificate, ca-private-key and token-key go together",
    ),
    "enrollment without an address": (
        _server(tls=FILES, enrollment=AUTHORITY),
        "listen.enrollment: must be given",
    ),
    "an open admin API": (_server(listen={"http": "0.0.0.0:8080"}), "admin.token: must be given"),
    "an address twice": (
        _server(listen={"grpc": "127.0.0.1:7000", "http": "localhost:7000"}),
        "listen.http: localhost:7000 is where listen.grpc answers",
    ),
    "an address within another": (
        _server(listen={"grpc": "0.0.0.0:7000", "metrics": "127.0.0.1:7000"}),
        "listen.metrics: 127.0.0.1:7000 is where listen.grpc answers",
    ),
    "an address twice again": (
        _server(listen={"http": "127.0.0.1:7000", "metrics": "127.0.0.1:7000"}),
        "listen.metrics: 127.0.0.1:7000 is where listen.http answers",
    ),
    "enrollment where devices call": (
        _server(listen={"grpc": "127.0.0.1:7000", "enrollment": "127.0.0.1:7000"}),
        "listen.enrollment: 127.0.0.1:7000 is where listen.grpc answers",
    ),
    "http where devices enroll": (
        _server(listen={"http": "127.0.0.1:7000", "enrollment": "127.0.0.1:7000"}),
        "listen.http: 127.0.0.1:7000 is where listen.enrollment answers",
    ),
    "metrics where devices enroll": (
        _server(listen={"metrics": "127.0.0.1:7000", "enrollment": "127.0.0.1:7000"}),
        "listen.metrics: 127.0.0.1:7000 is where listen.enrollment answers",
    ),
    "nothing to do": (_server(task=[]), "task: at least one [[task]] must be given"),
    "two of a name": (
        _server(task=[PLAIN, PLAIN | {"name": "other"}, PLAIN]),
        "task[3].name: task names must differ, digits is that of task[1] too",
    ),
    "noise that a store forgets": (
        _task(PRIVATE, privacy=BANDED, **REGULAR) | {"store": {"durability": "process"}},
        "task[1].privacy.mechanism: banded needs store.durability = machine",
    ),
    "a quorum above the goal": (
        _task(PLAIN, min_contributions=21),
        "task[1].min-contributions: 21 must not exceed reporting-goal=20",
    ),
    "a norm that no number is within": (
        _task(PLAIN, plan={"clipping-norm": 1e-40}),
        "task[1].plan.clipping-norm: 1e-40 must be at least 1e-30, or 0",
    ),
    "more rounds than are counted": (
        _task(PRIVATE, num_rounds=1_000_001),
        "task[1].num-rounds: 1000001 is more than the ledger of a private task counts, 1000000",
    ),
    "nothing to share": (
        _task(PLAIN, sharing={"quorum": 3}),
        'task[1].sharing: has no meaning where mode = "plain"',
    ),
    "a budget that nobody keeps": (
        _task(PLAIN, privacy={"epsilon": 2.0}),
        "task[1].privacy.noise: is none, so that the other settings of privacy would do nothing",
    ),
    "top-k of all": (
        _task(SHARED, compression={"method": "top-k"}),
        "task[1].compression.method: top-k cannot be shared: each device's choice",
    ),
    "value types of shares": (
        _task(SHARED, compression={"method": "projection", "value-type": "int8"}),
        "task[1].compression.value-type: has no meaning in shared rounds",
    ),
    "old maps": (
        _task(SHARED, compression={"method": "projection"}, sharing={"max-staleness": 2}),
        "task[1].compression.method: projection does not go with sharing.max-staleness",
    ),
    "no committee": (
        _task(PLAIN, mode="shared", plan={"clipping-norm": 1.0}),
        "task[1].sharing.committee: must name",
    ),
    "no bound": (
        _task(SHARED, plan={"clipping-norm": 0.0}),
        "task[1].plan.clipping-norm: must be above 0: it bounds what one device",
    ),
    "a norm that nobody sees": (
        _task(SHARED, aggregation={"clipping-norm": 1.0}),
        "task[1].aggregation.clipping-norm: cannot apply",
    ),
    "a rule without groups": (
        _task(SHARED, aggregation={"rule": "median"}),
        "task[1].aggregation.rule: median needs single updates or groups",
    ),
    "one opened update": (
        _task(SHARED, aggregation={"rule": "krum"}, sharing={"group-size": 3}),
        "task[1].aggregation.rule: krum would open a single update",
    ),
    "a selection without distances": (
        _task(SHARED, aggregation=KRUM),
        "task[1].sharing.checks: must be distances for aggregation.rule=multi-krum",
    ),
    "distances for nothing": (
        _task(SHARED, sharing={"checks": "distances"}),
        "task[1].sharing.checks: distances is for distance-outliers",
    ),
    "distances of groups": (
        _task(SHARED, aggregation=KRUM, sharing={"checks": "distances", "group-size": 3}),
        "task[1].sharing.checks: distances is for distance-outliers",
    ),
    "an odd sketch": (
        _task(SHARED, sharing={"sketch-dim": 1000}),
        "task[1].sharing.sketch-dim: 1000 must be a power of two",
    ),
    "more members than contributions": (
        _task(SHARED, sharing={"min-members": 21}),
        "task[1].sharing.min-members: 21 must not exceed min-contributions=20",
    ),
    "one member": (
        _task(SHARED, reporting_goal=1),
        "task[1].sharing.min-members: 2 must not exceed min-contributions=1, and is at least 2",
    ),
    "half a certificate": (
        _task(SHARED, sharing={"holders-certificate": "c", "holders-ca": "a"}),
        "task[1].sharing.holders-private-key: goes together with",
    ),
    "a certificate for nobody": (
        _task(SHARED, sharing={"holders-certificate": "c", "holders-private-key": "k"}),
        "task[1].sharing.holders-ca: must be given",
    ),
    "less for enough than for all": (
        _task(SHARED, sharing={"max-wait-s": 30}),
        "task[1].sharing.max-wait-s: 30 must not be below sharing.holder-timeout-s=60",
    ),
    "holders of a plain task": (
        _task(PRIVATE, privacy={"noise": "holders"}),
        "task[1].privacy.noise: holders must be central or device where mode is plain",
    ),
    "a coordinator that sees nothing": (
        _task(SHARED, privacy={"noise": "central"}),
        "task[1].privacy.noise: central must be holders where mode is shared",
    ),
    "no sensitivity": (
        _task(PRIVATE, plan={"clipping-norm": 0.0}),
        "task[1].plan.clipping-norm: must be above 0: it is the sensitivity",
    ),
    "a second clipping norm": (
        _task(PRIVATE, aggregation={"clipping-norm": 2.0}),
        "task[1].aggregation.clipping-norm: would replace plan.clipping-norm",
    ),
    "private groups": (
        _task(SHARED, privacy={"noise": "holders"}, sharing={"group-size": 4}),
        "task[1].sharing.group-size: opens sums without the noise",
    ),
    "private and stale": (
        _task(SHARED, privacy={"noise": "holders"}, sharing={"max-staleness": 2}),
        "task[1].sharing.max-staleness: counts one device's update",
    ),
    "poisson without q": (
        _task(PRIVATE, privacy=POISSON | {"sampling-probability": 0.0}),
        "task[1].privacy.sampling-probability: must be above 0 and at most 1",
    ),
    "q without poisson": (
        _task(PRIVATE, privacy={"sampling-probability": 0.1}),
        "task[1].privacy.sampling-probability: has no meaning without sampling poisson",
    ),
    "no population": (
        _task(PRIVATE, privacy=POISSON | {"population": 0}),
        "task[1].privacy.population: must be given with sampling poisson",
    ),
    "a population smaller than its cohort": (
        _task(PRIVATE, privacy=FIXED | {"population": 19}, fairness=0),
        "task[1].privacy.population: 19 must not be below reporting-goal=20",
    ),
    "a fixed cohort by age": (
        _task(PRIVATE, privacy=FIXED),
        "task[1].privacy.sampling: fixed-size draws every device alike: set fairness = 0",
    ),
    "a cap with sampling": (
        _task(PRIVATE, privacy=POISSON, max_participations=3),
        "task[1].max-participations: would make sampling poisson depend",
    ),
    "a pause with poisson": (
        _task(PRIVATE, privacy=POISSON, min_rounds_between=3),
        "task[1].min-rounds-between: would make sampling poisson depend",
    ),
    "a guessable cohort": (
        _task(PRIVATE, privacy=POISSON, seed=7),
        "task[1].seed: makes the cohort guessable",
    ),
    "a rule that noise cannot be sized for": (
        _task(PRIVATE, aggregation={"rule": "median"}),
        "task[1].aggregation.rule: median must be mean or multi-krum where the coordinator",
    ),
    "sampling in shared rounds": (
        _task(SHARED, privacy=POISSON | {"noise": "holders"}),
        "task[1].privacy.sampling: amplifies nothing in shared rounds",
    ),
    "sampling with a rule that sees absence": (
        _task(PRIVATE, privacy=POISSON, aggregation={"rule": "multi-krum"}),
        "task[1].privacy.sampling: poisson goes with aggregation.rule = mean only",
    ),
    "a delta that gives a device away": (
        _task(PRIVATE, privacy=POISSON | {"delta": 1e-4}),
        "task[1].privacy.delta: 0.0001 must be below 1 / population",
    ),
    "sampling of devices that add noise": (
        _task(PRIVATE, privacy=POISSON | DEVICE),
        "task[1].privacy.sampling: amplifies nothing where devices add the noise",
    ),
    "top-k behind the noise of devices": (
        _task(PRIVATE, privacy=DEVICE, compression={"method": "top-k"}),
        "task[1].compression.method: top-k chooses coordinates",
    ),
    "distances under the noise of devices": (
        _task(PRIVATE, privacy=DEVICE | {"noise-multiplier": 3.0}, aggregation=KRUM),
        "task[1].aggregation.rule: rule 'multi-krum' compares updates",
    ),
    "banded noise of devices": (
        _task(PRIVATE, privacy=BANDED | {"noise": "device"}, **REGULAR),
        "task[1].privacy.mechanism: banded is for noise = central without sampling",
    ),
    "banded without a cap": (
        _task(PRIVATE, privacy=BANDED, min_rounds_between=7),
        "task[1].max-participations: must be given with mechanism banded",
    ),
    "banded too close": (
        _task(PRIVATE, privacy=BANDED, max_participations=10, min_rounds_between=6),
        "task[1].min-rounds-between: 6 must be at least bands - 1",
    ),
    "banded with a map for each round": (
        _task(PRIVATE, privacy=BANDED, compression={"method": "projection"}, **REGULAR),
        "task[1].compression.method: projection has a map of its own in each round",
    ),
    "bands alone": (
        _task(PRIVATE, privacy={"bands": 8}),
        "task[1].privacy.bands: has no meaning",
    ),
    "adaptive clipping under banded noise": (
        _task(PRIVATE, privacy=BANDED | {"adaptive-clipping": True}, **REGULAR),
        "task[1].privacy.adaptive-clipping: is for noise = central with mechanism gaussian",
    ),
    "adaptive clipping of a selection": (
        _task(PRIVATE, privacy={"adaptive-clipping": True}, aggregation=KRUM),
        "task[1].privacy.adaptive-clipping: is for aggregation.rule = mean",
    ),
    "a holder without tls": (_holder(tls={"insecure": False}), "tls: give certificate"),
    "half a holder's certificate": (
        _holder(tls={"certificate": "c.pem"}),
        "tls.private-key: goes together with certificate",
    ),
    "a holder's both": (
        _holder(tls={"certificate": "c", "private-key": "k"}),
        "tls.insecure: is true, and",
    ),
    "callers without tls": (
        _holder(tls={"client-ca": "ca.pem", "coordinators": ["c"]}),
        "tls.client-ca: needs certificate and private-key",
    ),
    "coordinators that nobody proves": (
        _holder(tls={"coordinators": ["c"]}),
        "tls.coordinators: client-ca and coordinators go together",
    ),
    "no checks": (_holder(policy={"checks": []}), "policy.checks: must name at least one"),
    "no modes": (_holder(policy={"degraded": []}), "policy.degraded: must name at least one"),
    "fewer than few": (
        _holder(policy={"max-members": 7}),
        "policy.max-members: 7 must not be below min-members=8",
    ),
    "fewer tests than few": (
        _holder(policy={"max-wrap-tests": 39}),
        "policy.max-wrap-tests: 39 must not be below min-wrap-tests=40",
    ),
    "a holder's address twice": (
        _holder(listen={"grpc": "127.0.0.1:7000", "http": "127.0.0.1:7000"}),
        "listen.http: 127.0.0.1:7000 is where listen.grpc answers",
    ),
    "a holder's metrics there too": (
        _holder(listen={"grpc": "127.0.0.1:7000", "metrics": "127.0.0.1:7000"}),
        "listen.metrics: 127.0.0.1:7000 is where listen.grpc answers",
    ),
    "a holder's metrics with its health": (
        _holder(listen={"http": "127.0.0.1:7000", "metrics": "127.0.0.1:7000"}),
        "listen.metrics: 127.0.0.1:7000 is where listen.http answers",
    ),
}


def _parse(tree: Tree) -> ServerConfig | HolderConfig:
    return parse_holder_config(tree, {}) if "holder" in tree else parse_config(tree, {})


def _problems(tree: Tree) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        _parse(tree)
    return refused.value.problems


@looped("name", sorted(ACCEPTED))
def test_what_can_work_is_accepted(name: str) -> None:
    _parse(ACCEPTED[name])


@looped("name", sorted(REFUSED))
def test_what_cannot_work_is_refused_once(name: str) -> None:
    tree, told = REFUSED[name]
    (problem,) = _problems(tree)
    assert problem.startswith(told)


ROWS: Final[tuple[Contradiction[Any], ...]] = (*SERVER, *PLACED_TASK, *TASK, *HOLDER)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.setting}: {row.message[:40]}")
def test_every_row_names_a_setting_and_has_a_case(row: Contradiction[Any]) -> None:
    kinds = {id(one): HolderConfig for one in HOLDER} | {id(one): ServerConfig for one in SERVER}
    paths = setting_paths(kinds.get(id(row), TaskConfig))
    assert any(f"{path}.".startswith(f"{row.setting}.") for path in paths)
    words = [word for word in re.split(r"{[^}]*}", row.message) if word]
    assert any(
        f"{row.setting}: " in told and all(word in problem for word in words)
        for tree, told in REFUSED.values()
        for problem in _problems(tree)
    )


def test_a_row_is_not_asked_about_a_setting_that_is_wrong_itself() -> None:
    tree = _task(PLAIN, min_contributions=30, reporting_goal="many")
    (problem,) = _problems(tree)
    assert problem.startswith("task[1].reporting-goal: must be a whole number")


def test_contradictions_are_told_beside_wrong_values_and_those_of_other_tasks() -> None:
    tree = _task(PLAIN, min_contributions=30, fairness=-1)
    tree["task"].append(SHARED | {"name": "other", "aggregation": {"rule": "krum"}})
    assert [problem.partition(": ")[0] for problem in _problems(tree)] == [
        "task[1].fairness",
        "task[1].min-contributions",
        "task[2].aggregation.rule",
    ]
