"""From a task's settings to how its updates become one model."""

from dataclasses import replace

from aggregators.byzantine import ByzantineConfig
from aggregators.compressed import sparse_problem
from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.integrated import IntegratedConfig
from aggregators.registry import traits_of
from aggregators.server_optimizer import ServerOptimizerConfig
from privacy.charge import Charge
from privacy.noise import device_noise
from privacy.noisy_distances import norm_gate
from server.config import AggregationConfig, TaskConfig
from server.config.task_config import weight_cap
from server.round.candidate import AggregationSettings
from server.round.round_privacy import RoundPrivacy


def aggregator_config(task: TaskConfig) -> AggregatorConfig:
    """Return the rule, checked.

    Raises:
        AggregationError: if it is unknown, needs what a coordinator does not have, or cannot work
            on what the task's devices send.
    """
    settings: AggregationConfig = task.aggregation
    config = AggregatorConfig(
        rule=_row_rule(task),
        num_malicious_nodes=settings.num_malicious_nodes,
        num_to_select=settings.num_nodes_to_select,
        trim=settings.trim,
        max_num_samples=weight_cap(task),
        clipping_norm=settings.clipping_norm,
        norm_factor=settings.norm_factor,
        bucket_size=settings.bucket_size,
        clipping_radius=settings.clipping_radius,
        max_steps=settings.max_steps,
    )
    needs = traits_of(config.rule).needs
    if needs:
        msg = f"rule={settings.rule!r} needs {', '.join(needs)}, which a coordinator does not have"
        raise AggregationError(msg)
    if task.compression.method == "top-k":
        problem = sparse_problem(config, ratio=task.compression.ratio)
        if problem is not None:
            raise AggregationError(problem)
    return config


def aggregation_settings(
    task: TaskConfig,
    rule: AggregatorConfig,
    *,
    dim: int,
    privacy: RoundPrivacy | None,
    engine: Engine = LOCAL,
) -> AggregationSettings:
    """Tell how a round's updates become a change of the model.

    Args:
        task: settings.
        rule: as `aggregator_config` gives it.
        dim: numbers of an update as it is compared.
        privacy: of the task's rounds; None: they are not private.
        engine: what computes with the updates.
    """
    if task.privacy.noise == "device" and privacy is not None:
        rule = replace(rule, clipping_norm=_gate(privacy, dim))
    settings = task.aggregation
    return AggregationSettings(
        aggregator=IntegratedConfig(
            byzantine=ByzantineConfig(
                aggregator=rule,
                malicious_fraction=settings.malicious_fraction,
                may_degrade=settings.may_degrade,
            ),
            optimizer=ServerOptimizerConfig(
                name=settings.server_optimizer,
                learning_rate=settings.server_learning_rate,
                momentum=settings.server_momentum,
                beta2=settings.server_beta2,
                adaptivity=settings.server_adaptivity,
            ),
        ),
        engine=engine,
    )


def _gate(privacy: RoundPrivacy, dim: int) -> float:
    """Return the norm that honest updates stay within though devices added noise to them."""
    noise = device_noise(
        noise_multiplier=Charge.from_text(privacy.charge).noise_multiplier,
        clip_norm=privacy.clipping_norm,
        dim=dim,
    )
    return norm_gate(privacy.clipping_norm, stddev=noise.real_stddev, dim=dim)


def _row_rule(task: TaskConfig) -> str:
    """Return the rule for what the coordinator sees: updates, or in a shared round means of groups.

    Rules that pick by distances have done so before. Where a degraded round opens groups instead,
    the median of their means withstands what a rule on so few rows would not.
    """
    rule = task.aggregation.rule
    return "median" if task.is_shared and traits_of(rule).picks_by_distances else rule
