"""What the rounds of a task compute with, loaded before there is a task."""

from contextlib import suppress

from aggregators.errors import AggregationError
from aggregators.warm_up import warm_up
from privacy.errors import PrivacyError
from security.secret_sharing import warm_up as secret_sharing
from server.config import TaskConfig
from server.privacy.accountant_loader import load_accountants
from server.task.aggregation_settings import aggregator_config


def preload_task(task: TaskConfig) -> None:
    """Load kernels and accountants, compiled where they are not; leave errors to who opens it."""
    with suppress(AggregationError):
        warm_up(aggregator_config(task))
    if task.is_shared:
        secret_sharing.warm_up()
    if task.privacy.is_on:
        with suppress(PrivacyError):
            load_accountants()
