"""From a task's settings to the values that everything below works with.

Whoever is below gets what it needs of these, never a section of a file.
"""

from privacy.charge import Charge
from security.shared_round.terms.committee import Committee
from server.compression.task_compression import TaskCompression
from server.config import CriteriaConfig, TaskConfig
from server.config.privacy_config import PrivacyConfig
from server.config.task_config import value_type_of
from server.round.round_privacy import NOISE_OF_DEVICES, RoundPrivacy
from server.round.selection import EligibilityCriteria, SelectionPolicy
from server.round.terms import PrivacyTerms, RoundTerms, TrainingPlan
from server.sharing.shared_task import SharedTask
from server.task.payload_format import CompressedFormat, DenseFormat, PayloadFormat
from server.task.task_info import TaskInfo
from updates.codec import dense_payload_bytes
from updates.compression_plan import Method, ValueType
from updates.stage import zstd_version


def task_compression(config: TaskConfig, layer_sizes: tuple[int, ...]) -> TaskCompression | None:
    """Tell how a task's updates are compressed; None: they are dense float32.

    Raises:
        CompressionError: if the coordinates that rounds announce can be too many for a message.
    """
    settings, value_type = config.compression, ValueType(value_type_of(config))
    if settings.is_dense and value_type is ValueType.FLOAT32:
        return None
    # What is sealed and shared does not go through the codec. Where noise hides what is in an
    # update, the length of its frame should not tell of it either.
    takes_zstd = settings.zstd and not config.is_shared and not config.privacy.is_on
    return TaskCompression(
        task=config.name,
        layer_sizes=layer_sizes,
        method=Method(settings.method),
        ratio=settings.ratio,
        value_type=value_type,
        error_feedback=settings.error_feedback,
        residual_decay=settings.residual_decay,
        max_residual_age=settings.max_residual_age,
        random_share=settings.random_share,
        zstd_version=zstd_version() if takes_zstd else 0,
    )


def shared_task(config: TaskConfig, committee: Committee) -> SharedTask:
    """Return the shared side of a task, with these share holders."""
    sharing, rule = config.sharing, config.aggregation
    return SharedTask(
        name=config.name,
        committee=committee,
        reporting_goal=config.reporting_goal,
        min_contributions=config.quorum,
        min_members=config.min_members,
        clipping_norm=config.plan.clipping_norm,
        rule=rule.rule,
        num_malicious_nodes=rule.num_malicious_nodes,
        num_to_select=rule.num_nodes_to_select,
        format=sharing.format,
        checks=sharing.checks,
        degraded=sharing.degraded,
        fraction_bits=sharing.fraction_bits,
        quorum=sharing.quorum,
        sketch_dim=sharing.sketch_dim,
        group_size=sharing.group_size,
        max_staleness=sharing.max_staleness,
        holder_timeout_s=sharing.holder_timeout_s,
        max_wait_s=sharing.max_wait_s,
        is_direct=sharing.delivery == "direct",
    )


def task_info(
    config: TaskConfig,
    *,
    dim: int,
    shared: SharedTask | None = None,
    compression: TaskCompression | None = None,
    privacy: RoundPrivacy | None = None,
) -> TaskInfo:
    """Return facts of one task whose model has `dim` elements.

    Args:
        config: settings.
        dim: elements of the model.
        shared: where rounds are shared.
        compression: how updates are compressed; None: they are dense.
        privacy: of the first round; None: rounds are not private.

    Raises:
        SharingError: if the settings of a shared task fit no sound round.
    """
    plain_payload, max_update_bytes = _plain_payload(dim, None if shared else compression)
    if shared is not None:
        shared_dim = compression.num_values if compression else dim
        max_update_bytes = shared.check(dim=shared_dim, privacy=privacy)
    return TaskInfo(
        name=config.name,
        dim=dim,
        max_update_bytes=max_update_bytes,
        terms=_terms(config),
        plan=_plan(config, privacy),
        criteria=_criteria(config.criteria),
        selection=_selection(config),
        privacy=_privacy(config.privacy),
        plain_payload=plain_payload,
        shared=shared,
        compression=compression,
    )


def _plain_payload(dim: int, compression: TaskCompression | None) -> tuple[PayloadFormat, int]:
    """Return the form of an update in the clear, and the most bytes that it has."""
    if compression is None:
        return DenseFormat(dim=dim), dense_payload_bytes(dim)
    codec = compression.codec()
    payload = CompressedFormat(codec=codec, num_values=compression.num_values)
    return payload, codec.max_payload_bytes


def _terms(config: TaskConfig) -> RoundTerms:
    privacy = config.privacy
    return RoundTerms(
        num_rounds=config.num_rounds,
        reporting_goal=config.reporting_goal,
        min_contributions=config.quorum,
        selection_timeout_s=config.selection_timeout_s,
        collection_timeout_ms=int(config.collection_timeout_s * 1000),
        is_sampled=privacy.is_on and privacy.sampling != "none",
        population=privacy.population,
        seed=config.seed,
        max_staleness=config.sharing.max_staleness if config.is_shared else 0,
    )


def _plan(config: TaskConfig, privacy: RoundPrivacy | None) -> TrainingPlan:
    noise = 0.0
    if privacy is not None and config.privacy.noise == NOISE_OF_DEVICES:
        noise = Charge.from_text(privacy.charge).noise_multiplier
    return TrainingPlan(
        local_epochs=config.plan.local_epochs,
        batch_size=config.plan.batch_size,
        learning_rate=config.plan.learning_rate,
        clipping_norm=config.plan.clipping_norm,
        hyperparameters=config.plan.hyperparameters,
        device_noise_multiplier=noise,
        reports_clipping=config.privacy.is_on and config.privacy.adaptive_clipping,
    )


def _selection(config: TaskConfig) -> SelectionPolicy:
    return SelectionPolicy(
        reporting_goal=config.reporting_goal,
        over_selection=config.over_selection,
        max_participations=config.max_participations,
        min_rounds_between=config.min_rounds_between,
        fairness=config.fairness,
    )


def _privacy(config: PrivacyConfig) -> PrivacyTerms:
    return PrivacyTerms(
        noise=config.noise,
        mechanism=config.mechanism,
        sampling=config.sampling,
        accountant=config.accountant,
        epsilon=config.epsilon,
        delta=config.delta,
    )


def _criteria(config: CriteriaConfig) -> EligibilityCriteria:
    return EligibilityCriteria(
        min_battery_percent=config.min_battery_percent,
        require_charging=config.require_charging,
        require_unmetered=config.require_unmetered,
        require_idle=config.require_idle,
        min_ram_mib=config.min_ram_mib,
        min_app_version=config.min_app_version,
    )
