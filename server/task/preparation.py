"""Prepares a task: reads the files that its settings name, and finds out what they come to.

All that needs no store is done here, for `serve` and for `fedagg config check` alike: what cannot
work is told before the first device comes.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from aggregators.byzantine import ByzantineConfig
from aggregators.capacity import least_updates
from aggregators.config import AggregatorConfig
from aggregators.engines.engine_options import engine_problem
from aggregators.errors import AggregationError
from aggregators.registry import traits_of
from aggregators.rules.minimum_diameter import require_few_subsets
from privacy.errors import PrivacyError
from security.certificates.credentials import Credentials
from security.errors import SecurityError
from security.shared_round.terms.committee import Committee, load_committee
from server.config import ConfigError, TaskConfig
from server.config.findings import Findings
from server.config.pem_files import read_certificates, read_pair
from server.privacy.accountant_loader import load_private_task
from server.privacy.private_settings import private_settings
from server.processes.thread_pool import Workers
from server.round.candidate import AggregationSettings
from server.round.private_source import PrivateSettings
from server.round.round_privacy import RoundPrivacy
from server.task.aggregation_settings import aggregation_settings, aggregator_config
from server.task.resolving import shared_task, task_compression, task_info
from server.task.task_info import TaskInfo, noised_dim
from updates.errors import CompressionError, ModelError
from updates.vectors import decode_model

if TYPE_CHECKING:
    from server.privacy.private_task import PrivateTask

_ERRORS: Final = (AggregationError, PrivacyError, CompressionError, SecurityError, ConfigError)
_LEADING_NAME: Final = re.compile(r"(?P<name>[a-z_-]+)=(?P<value>\S+) (?P<rule>.*)", re.DOTALL)
_NO_PLAN: Final = re.compile(r"no parameters fit [^:]*: (?P<why>.*)", re.DOTALL)
_SNAKE_CASE: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")

# What arguments of the packages below are called in a file.
_SETTINGS: Final = {
    "bucket_size": "aggregation.bucket-size",
    "clipping_norm": "aggregation.clipping-norm",
    "engine": "aggregation.engine",
    "clipping_radius": "aggregation.clipping-radius",
    "max_num_samples": "aggregation.max-num-samples",
    "max_steps": "aggregation.max-steps",
    "norm_factor": "aggregation.norm-factor",
    "num_byzantine": "aggregation.num-malicious-nodes",
    "num_malicious_nodes": "aggregation.num-malicious-nodes",
    "num_to_select": "aggregation.num-nodes-to-select",
    "rule": "aggregation.rule",
    "trim": "aggregation.trim",
    "clip_norm": "plan.clipping-norm",
    "norm_bound": "plan.clipping-norm",
    "holders": "sharing.committee",
    "threshold": "sharing.committee",
    "quorum": "sharing.quorum",
    "min_members": "sharing.min-members",
    "max_members": "reporting-goal",
    "group_size": "sharing.group-size",
    "degraded": "sharing.degraded",
    "fraction_bits": "sharing.fraction-bits",
    "sketch_dim": "sharing.sketch-dim",
    "noise_multiplier": "privacy.noise-multiplier",
    "noise_stddev": "privacy.noise-multiplier",
    "count_stddev": "privacy.count-noise",
    "epsilon": "privacy.epsilon",
    "delta": "privacy.delta",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderFiles:
    """What a coordinator calls share holders with, under TLS.

    Attributes:
        authorities: PEM, of the holders' certificates.
        credentials: of the coordinator; None: holders ask for none.
    """

    authorities: bytes
    credentials: Credentials | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """What a task's settings and files come to.

    Attributes:
        info: what every call needs of it.
        aggregation: how a round's updates become a change of the model, on the engine `LOCAL`.
        engine: what they are to be computed with instead, by its name.
        private_aggregation: how they are noised, where the coordinator does.
        private: of a task whose rounds are private.
        keep_contributions: latest rounds whose updates are kept.
        max_update_norm: bound on the change of the model; None: any finite one.
        model: the initial model's file.
        model_sha256: lower-case hex.
        holder_files: of a shared task whose holders are called under TLS.
    """

    info: TaskInfo
    aggregation: AggregationSettings
    engine: str
    private_aggregation: PrivateSettings | None
    private: "PrivateTask | None"
    keep_contributions: int
    max_update_norm: float | None
    model: bytes = field(repr=False)
    model_sha256: str
    holder_files: HolderFiles | None

    @property
    def rule(self) -> AggregatorConfig:
        """The rule for what the coordinator sees."""
        return self.aggregation.aggregator.byzantine.aggregator

    @property
    def is_private(self) -> bool:
        """Whether what its rounds publish is charged to a budget."""
        return self.private is not None


def prepare_task(
    config: TaskConfig, where: str, findings: Findings, *, accountants: Workers, now_s: float
) -> PreparedTask | None:
    """Read a task's files, and derive what its rounds will be.

    Args:
        config: settings; where something is wrong with them, only the files are read.
        where: the task's name in the file, with a dot after it.
        findings: told everything that is wrong.
        accountants: where accountants will run.
        now_s: seconds since the Unix epoch, when certificates must be valid.

    Returns:
        The task; None where something is wrong with it.

    Cost: reads the model; of a private task a second or so more, to calibrate its noise.
    """
    preparation = _Preparation(config, where, findings)
    rule = preparation.rule() if preparation.is_sound() else None
    model, committee, holder_files = None, None, None
    with findings.skipping():
        model = preparation.model()
    with findings.skipping():
        committee = preparation.committee()
    with findings.skipping():
        holder_files = preparation.holder_files(now_s)
    if rule is None or model is None or not preparation.is_sound():
        return None
    resolved = preparation.resolved(model, committee, accountants)
    if resolved is None:
        return None
    return PreparedTask(
        info=resolved.info,
        aggregation=aggregation_settings(
            config, rule, dim=resolved.info.summed_dim, privacy=resolved.first_round
        ),
        engine=config.aggregation.engine,
        private_aggregation=private_settings(config),
        private=resolved.private,
        keep_contributions=config.keep_contributions,
        max_update_norm=config.validation.max_update_norm,
        model=model.data,
        model_sha256=hashlib.sha256(model.data).hexdigest(),
        holder_files=holder_files,
    )


@dataclass(frozen=True, slots=True)
class _Model:
    data: bytes
    layer_sizes: tuple[int, ...]

    @property
    def dim(self) -> int:
        return sum(self.layer_sizes)


@dataclass(frozen=True, slots=True)
class _Resolved:
    info: TaskInfo
    private: "PrivateTask | None"

    @property
    def first_round(self) -> RoundPrivacy | None:
        return None if self.private is None else self.private.first_round


class _Preparation:
    """Reads one task's files, and names its settings where they are at fault."""

    def __init__(self, config: TaskConfig, where: str, findings: Findings) -> None:
        self._config = config
        self._where = where
        self._findings = findings

    def is_sound(self) -> bool:
        """Tell whether nothing is wrong with the task so far."""
        return not any(problem.startswith(self._where) for problem in self._findings.problems)

    @contextmanager
    def telling(self, section: str) -> Iterator[None]:
        """Take what the packages below refuse for problems of the setting they name."""
        try:
            yield
        except _ERRORS as error:
            self._add(*_named(section, str(error)))

    def rule(self) -> AggregatorConfig | None:
        """Give the rule for what the coordinator sees, if it can take every round's updates."""
        rule = None
        with self.telling("aggregation.rule"):
            rule = aggregator_config(self._config)
            self._check_capacity(rule)
            problem = engine_problem(self._config.aggregation.engine)
            if problem is not None:
                raise AggregationError(problem)
        return rule

    def model(self) -> _Model | None:
        """Return the initial model."""
        path = self._config.initial_model
        data = self._read("initial-model", path)
        if data is None:
            return None
        try:
            tensors, _ = decode_model(data)
        except ModelError as error:
            # What the library says of a damaged file would tell a person nothing.
            said = str(error)
            problem = said if said.startswith("tensor ") else "is no whole safetensors file"
            self._add("initial-model", f"{path}: {problem}")
            return None
        sizes = tuple(tensor.size for tensor in tensors.values())
        if sum(sizes) == 0:
            self._add("initial-model", f"{path}: has no elements")
        elif not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            self._add("initial-model", f"{path}: holds NaN or infinity")
        else:
            return _Model(data, sizes)
        return None

    def committee(self) -> Committee | None:
        """Return the share holders of a shared task."""
        path = self._config.sharing.committee
        data = None if path is None else self._read("sharing.committee", path)
        if data is None:
            return None
        try:
            committee = load_committee(data)
        except SecurityError as error:
            self._add("sharing.committee", f"{path}: {error}")
            return None
        nowhere = [holder.name for holder in committee.holders if not holder.address]
        if nowhere:
            self._add("sharing.committee", f"{path}: has no address of {', '.join(nowhere)}")
        return committee

    def holder_files(self, now_s: float) -> HolderFiles | None:
        """Return what holders are called with; None: without TLS."""
        sharing, findings, where = self._config.sharing, self._findings, f"{self._where}sharing."
        if sharing.holders_ca is None:
            return None
        ca = read_certificates((f"{where}holders-ca", sharing.holders_ca), findings, now_s=now_s)
        credentials = None
        if sharing.holders_certificate is not None and sharing.holders_private_key is not None:
            credentials = read_pair(
                (f"{where}holders-certificate", sharing.holders_certificate),
                (f"{where}holders-private-key", sharing.holders_private_key),
                findings,
                now_s=now_s,
            )
        return None if ca is None else HolderFiles(authorities=ca[0], credentials=credentials)

    def resolved(
        self, model: _Model, committee: Committee | None, accountants: Workers
    ) -> _Resolved | None:
        """Derive the facts of the task, step by step; None where one cannot be had."""
        config, compression, private = self._config, None, None
        with self.telling("compression"):
            compression = task_compression(config, model.layer_sizes)
        if self.is_sound() and config.privacy.is_on:
            with self.telling("privacy"):
                dim = noised_dim(model.dim, compression)
                private = load_private_task(config, dim=dim, workers=accountants)
        if self.is_sound():
            with self.telling("sharing"):
                info = task_info(
                    config,
                    dim=model.dim,
                    shared=None if committee is None else shared_task(config, committee),
                    compression=compression,
                    privacy=None if private is None else private.first_round,
                )
                return _Resolved(info, private)
        return None

    def _check_capacity(self, rule: AggregatorConfig) -> None:
        """Refuse a rule that cannot take the updates of a round that goes as planned."""
        task = self._config
        if task.is_shared and traits_of(task.aggregation.rule).picks_by_distances:
            self._check_selection()
            return
        group = task.sharing.group_size if task.is_shared else 0
        if task.is_shared and not group:
            return  # one sum: no rule sees rows
        if task.aggregation.may_degrade:
            return  # to a rule that takes what came
        noun = "updates" if not group else f"groups of {group} updates"
        hostile = ByzantineConfig(
            aggregator=rule, malicious_fraction=task.aggregation.malicious_fraction
        )
        for setting, count in (
            ("reporting-goal", task.reporting_goal),
            ("min-contributions", task.quorum),
        ):
            rows = count // group if group else count
            attackers = hostile.num_malicious(rows)
            if rule.rule.endswith("minimum-diameter"):
                require_few_subsets(rows, attackers)
            least = least_updates(replace(rule, num_malicious_nodes=attackers))
            if rows < least:
                gives = f"{setting}={count} gives {rows}"
                self._add_too_few(f"{least} {noun}", attackers, gives)
                return

    def _check_selection(self) -> None:
        """Check the same where holders pick by opened distances; only multi-krum needs a number."""
        task, settings = self._config, self._config.aggregation
        if settings.rule != "multi-krum":
            return
        least = least_updates(
            AggregatorConfig(
                rule=settings.rule,
                num_malicious_nodes=settings.num_malicious_nodes,
                num_to_select=settings.num_nodes_to_select,
            )
        )
        picked = settings.num_nodes_to_select or task.quorum - settings.num_malicious_nodes
        if task.quorum < least:
            gives = f"min-contributions={task.quorum} gives {task.quorum}"
            self._add_too_few(f"{least} updates", settings.num_malicious_nodes, gives)
        elif picked < task.min_members:
            self._add(
                "sharing.min-members",
                f"{task.min_members} must not exceed the {picked} updates that {settings.rule}"
                f" picks of min-contributions={task.quorum}",
            )

    def _add_too_few(self, needed: str, attackers: int, gives: str) -> None:
        settings = self._config.aggregation
        setting, against = "aggregation.rule", ""
        if attackers:
            by_share = settings.malicious_fraction is not None
            setting = "aggregation." + ("malicious-fraction" if by_share else "num-malicious-nodes")
            against = f" against {attackers} attackers"
        self._add(setting, f"{settings.rule} needs at least {needed}{against}, {gives}")

    def _read(self, setting: str, path: Path) -> bytes | None:
        return self._findings.read(f"{self._where}{setting}", path)

    def _add(self, setting: str, problem: str) -> None:
        self._findings.add(f"{self._where}{setting}", problem)


def _named(section: str, message: str) -> tuple[str, str]:
    """Find the setting that a message of the packages below is about, and put it in its words."""
    planned = _NO_PLAN.fullmatch(message)
    if planned is not None:
        section, message = "plan.clipping-norm", planned["why"]
    found = _LEADING_NAME.fullmatch(message)
    setting = None if found is None else _SETTINGS.get(found["name"].replace("-", "_"))
    if found is not None and setting is not None:
        section, message = setting, f"{found['value']} {found['rule']}"
    return section, _SNAKE_CASE.sub(lambda word: _word(word[0]), message)


def _word(name: str) -> str:
    return _SETTINGS.get(name, name.replace("_", "-"))
