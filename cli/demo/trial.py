"""Has a coordinator's own code look at the settings of a demonstration before anything starts.

Importing this loads what a coordinator needs: only options beyond the usual lead here.
"""

import time
from contextlib import closing
from pathlib import Path
from typing import Final

from cli.contradictions import OptionsError
from server.config import ConfigError, ServerConfig, load_config
from server.config.findings import Findings
from server.processes.thread_pool import Workers
from server.task.preparation import prepare_task

_TASK: Final = "task[1]."

# Which option leads to a setting; the first that a problem begins with is told.
_OPTIONS: Final = {
    "privacy.epsilon": "--epsilon",
    "privacy.delta": "--delta",
    "privacy": "--epsilon",
    "plan.clipping-norm": "--clipping-norm",
    "aggregation.num-malicious-nodes": "--attackers",
    "aggregation": "--aggregator",
    "compression.ratio": "--compression-ratio",
    "compression.value-type": "--value-type",
    "compression": "--compression",
    "sharing.group-size": "--group-size",
    "sharing.committee": "--holders and --threshold",
    "sharing": "--mode shared",
    "reporting-goal": "--devices",
    "min-contributions": "--devices",
    "num-rounds": "--rounds",
    "seed": "--seed",
}


def tried_config(path: Path) -> ServerConfig:
    """Read a configuration, unless a coordinator or its first round would refuse it.

    Raises:
        OptionsError: with a line for each problem, which names the option that leads to it.
    """
    findings = Findings()
    try:
        config = load_config(path, {})
        with closing(Workers("accountant", threads=1)) as accountants:
            for task in config.tasks:
                with findings.skipping():
                    prepare_task(task, _TASK, findings, accountants=accountants, now_s=time.time())
        findings.refuse()
    except ConfigError as error:
        raise OptionsError(map(in_options, error.problems)) from error
    return config


def in_options(problem: str) -> str:
    """Name the option that leads to the setting which a problem is about."""
    setting, separator, message = problem.removeprefix(_TASK).partition(": ")
    for prefix, option in _OPTIONS.items():
        if separator and (setting == prefix or setting.startswith(f"{prefix}.")):
            return f"{option}: {message} ({setting})"
    return problem
