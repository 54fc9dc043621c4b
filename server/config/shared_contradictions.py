"""Contradictions in the settings of a shared task."""

from typing import TYPE_CHECKING, Final

from aggregators.registry import rules_that
from server.config.contradictions import Contradiction, rule_traits

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig


def _picking_rules() -> str:
    return " and ".join(rules_that(lambda traits: traits.picks_by_distances))


SHARED_TASKS: Final[tuple[Contradiction["TaskConfig"], ...]] = (
    Contradiction(
        "sharing.committee",
        lambda task: task.sharing.committee is None,
        "must name the committee's file",
    ),
    Contradiction(
        "plan.clipping-norm",
        lambda task: task.plan.clipping_norm <= 0,
        "must be above 0: it bounds what one device can do to the sum",
    ),
    Contradiction(
        "aggregation.clipping-norm",
        lambda task: task.aggregation.clipping_norm is not None,
        "cannot apply to updates nobody sees: set plan.clipping-norm",
    ),
    Contradiction(
        "aggregation.rule",
        lambda task: (
            task.sharing.group_size == 0
            and not rule_traits(task).works_on_shares
            and not rule_traits(task).is_single
        ),
        "{0.aggregation.rule} needs single updates or groups: set sharing.group-size",
    ),
    Contradiction(
        "aggregation.rule",
        lambda task: rule_traits(task).is_single,
        "{0.aggregation.rule} would open a single update",
    ),
    Contradiction(
        "sharing.checks",
        lambda task: (
            rule_traits(task).picks_by_distances
            and task.sharing.group_size == 0
            and task.sharing.checks != "distances"
        ),
        "must be distances for aggregation.rule={0.aggregation.rule}, which picks by distances",
    ),
    Contradiction(
        "sharing.checks",
        lambda task: (
            task.sharing.checks == "distances"
            and (not rule_traits(task).picks_by_distances or task.sharing.group_size > 0)
            and _picking_rules()
        ),
        "distances is for {1} without groups",
    ),
    Contradiction(
        "sharing.sketch-dim",
        lambda task: task.sharing.sketch_dim & (task.sharing.sketch_dim - 1) != 0,
        "{0.sharing.sketch_dim} must be a power of two",
    ),
    Contradiction(
        "sharing.min-members",
        lambda task: task.min_members > task.quorum,
        "{0.min_members} must not exceed min-contributions={0.quorum}, and is at least 2",
    ),
    Contradiction(
        "sharing.holders-private-key",
        lambda task: (
            (task.sharing.holders_certificate is None)
            is not (task.sharing.holders_private_key is None)
        ),
        "goes together with sharing.holders-certificate: give both or none",
    ),
    Contradiction(
        "sharing.holders-ca",
        lambda task: (
            task.sharing.holders_certificate is not None and task.sharing.holders_ca is None
        ),
        "must be given with sharing.holders-certificate",
    ),
    Contradiction(
        "sharing.max-wait-s",
        lambda task: task.sharing.max_wait_s < task.sharing.holder_timeout_s,
        "{0.sharing.max_wait_s:g} must not be below"
        " sharing.holder-timeout-s={0.sharing.holder_timeout_s:g}",
    ),
)
