"""Settings of differential privacy that would void its claim are refused, with the reason."""

from typing import Any

import pytest

from server.config import ConfigError, TaskConfig, parse_config

COMMITTEE = {"committee": "committee.json"}


def _task(durability: str = "machine", **changes: Any) -> TaskConfig:
    """A private task; keys of a section are merged into it."""
    tree: dict[str, Any] = {
        "name": "digits",
        "initial-model": "model.safetensors",
        "reporting-goal": 20,
        "plan": {"clipping-norm": 1.0},
        "privacy": {"noise": "central"},
    }
    for key, value in changes.items():
        name = key.replace("_", "-")
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    store = {"durability": durability}
    config = parse_config({"tls": {"insecure": True}, "store": store, "task": [tree]}, {})
    return config.tasks[0]


POISSON = {"sampling": "poisson", "sampling-probability": 0.01, "population": 10_000}
FIXED = {"sampling": "fixed-size", "population": 1_000}
BANDED = {"mechanism": "banded", "bands": 8}
DEVICE = {"noise": "device", "noise-multiplier": 0.001}

ACCEPTED: dict[str, dict[str, Any]] = {
    "central": {},
    "poisson": {"privacy": POISSON},
    "fixed-size": {"privacy": FIXED, "fairness": 0},
    "banded": {"privacy": BANDED, "max_participations": 10, "min_rounds_between": 7},
    "adaptive clipping": {"privacy": {"adaptive-clipping": True}},
    "multi-krum": {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 4}},
    "device": {"privacy": DEVICE},
    "holders": {"mode": "shared", "privacy": {"noise": "holders"}, "sharing": COMMITTEE},
}


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_what_can_work_is_accepted(name: str) -> None:
    assert _task(**ACCEPTED[name]).privacy.is_on


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "holders of a plain task": ({"privacy": {"noise": "holders"}}, "must be central or device"),
    "a coordinator that sees nothing": (
        {"mode": "shared", "sharing": COMMITTEE},
        "must be holders where mode is 'shared'",
    ),
    "no clipping": ({"plan": {"clipping-norm": 0.0}}, "clipping-norm must be > 0"),
    "a second clipping norm": ({"aggregation": {"clipping-norm": 2.0}}, "would replace"),
    "groups": (
        {
            "mode": "shared",
            "privacy": {"noise": "holders"},
            "sharing": {**COMMITTEE, "group-size": 4},
        },
        "group-size opens sums without the noise",
    ),
    "stale updates": (
        {
            "mode": "shared",
            "privacy": {"noise": "holders"},
            "sharing": {**COMMITTEE, "max-staleness": 2},
        },
        "max-staleness counts one device's update",
    ),
    "poisson without q": (
        {"privacy": {**POISSON, "sampling-probability": 0.0}},
        "sampling-probability must be in",
    ),
    "q without poisson": (
        {"privacy": {"sampling-probability": 0.1}},
        "has no meaning without sampling poisson",
    ),
    "no population": ({"privacy": {**POISSON, "population": 0}}, "population must be given"),
    "a population smaller than its cohort": (
        {"privacy": {**FIXED, "population": 19}, "fairness": 0},
        "must not be below reporting-goal",
    ),
    "a fixed cohort by age": ({"privacy": FIXED}, "set fairness = 0"),
    "a cap with sampling": (
        {"privacy": POISSON, "max_participations": 3},
        "max-participations would make sampling poisson depend",
    ),
    "a pause with poisson": (
        {"privacy": POISSON, "min_rounds_between": 3},
        "min-rounds-between would make sampling poisson depend",
    ),
    "a guessable cohort": ({"privacy": POISSON, "seed": 7}, "makes the cohort guessable"),
    "sampling in shared rounds": (
        {
            "mode": "shared",
            "privacy": {**POISSON, "noise": "holders"},
            "sharing": COMMITTEE,
        },
        "sampling amplifies nothing in shared rounds",
    ),
    "sampling with a rule that sees absence": (
        {"privacy": POISSON, "aggregation": {"rule": "multi-krum"}},
        "goes with rule = 'mean' only",
    ),
    "a delta that gives a device away": (
        {"privacy": {**POISSON, "delta": 1e-4}},
        "must be below 1 / population",
    ),
    "sampling of devices that add noise": (
        {"privacy": {**POISSON, **DEVICE}},
        "sampling amplifies nothing where devices add the noise",
    ),
    "top-k behind the noise of devices": (
        {"privacy": DEVICE, "compression": {"method": "top-k"}},
        "does not hide which coordinates",
    ),
    "distances under the noise of devices": (
        {
            "privacy": {**DEVICE, "noise-multiplier": 3.0},
            "aggregation": {"rule": "multi-krum", "num-malicious-nodes": 4},
        },
        "multi-krum",
    ),
    "banded with sampling": (
        {"privacy": {**BANDED, **POISSON}},
        "for noise = 'central' without sampling",
    ),
    "banded without a cap": (
        {"privacy": BANDED, "min_rounds_between": 7},
        "needs max-participations",
    ),
    "banded too close": (
        {"privacy": BANDED, "max_participations": 10, "min_rounds_between": 6},
        "at least bands - 1",
    ),
    "banded with a map for each round": (
        {
            "privacy": BANDED,
            "max_participations": 10,
            "min_rounds_between": 7,
            "compression": {"method": "projection"},
        },
        "cancels nothing with compression.method='projection'",
    ),
    "bands alone": ({"privacy": {"bands": 8}}, "bands has no meaning"),
    "adaptive clipping under banded noise": (
        {
            "privacy": {**BANDED, "adaptive-clipping": True},
            "max_participations": 10,
            "min_rounds_between": 7,
        },
        "with mechanism gaussian",
    ),
    "adaptive clipping of a selection": (
        {
            "privacy": {"adaptive-clipping": True},
            "aggregation": {"rule": "multi-krum", "num-malicious-nodes": 4},
        },
        "is for rule = 'mean'",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_void_the_claim_is_refused(name: str) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        _task(**changes)
    assert reason in str(refused.value)


def test_noise_that_belongs_to_its_round_alone_must_not_be_forgotten() -> None:
    with pytest.raises(ConfigError, match="a store that forgets a round"):
        _task(durability="process", **ACCEPTED["banded"])
    assert _task(durability="process").privacy.is_on


COMPRESSION_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top-k in shared rounds": ({"method": "top-k"}, "cannot be shared: each device's choice"),
    "value types in shared rounds": (
        {"method": "projection", "value-type": "int8"},
        "has no meaning in shared rounds",
    ),
}


@pytest.mark.parametrize("name", sorted(COMPRESSION_REFUSED))
def test_only_common_maps_are_shared(name: str) -> None:
    compression, reason = COMPRESSION_REFUSED[name]
    shared: dict[str, Any] = {
        "mode": "shared",
        "privacy": {"noise": "none"},
        "sharing": COMMITTEE,
    }
    with pytest.raises(ConfigError) as refused:
        _task(**shared, compression=compression)
    assert reason in str(refused.value)
    for method in ("rand-k", "announced", "projection"):
        assert _task(**shared, compression={"method": method}).compression.method == method


def test_maps_of_their_own_do_not_go_with_stale_updates() -> None:
    with pytest.raises(ConfigError, match="each round has a map of its own"):
        _task(
            mode="shared",
            privacy={"noise": "none"},
            sharing={**COMMITTEE, "max-staleness": 2},
            compression={"method": "projection"},
        )
