"""From a task's settings to how its updates are combined and noised."""

from server.config import TaskConfig
from server.config.task_config import weight_cap
from server.round.private_source import PrivateSettings


def private_settings(task: TaskConfig) -> PrivateSettings | None:
    """Tell how a round's updates are combined and noised; None: the coordinator adds no noise."""
    privacy, rule = task.privacy, task.aggregation
    if privacy.noise != "central":
        return None
    return PrivateSettings(
        rule=rule.rule,
        num_malicious_nodes=rule.num_malicious_nodes,
        num_to_select=rule.num_nodes_to_select,
        max_num_samples=weight_cap(task),
        adapts=privacy.adaptive_clipping,
        target_quantile=privacy.target_quantile,
        clipping_learning_rate=privacy.clipping_learning_rate,
        count_noise=privacy.count_noise,
    )
