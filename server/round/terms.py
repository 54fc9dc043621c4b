"""What a task's rounds go by, whatever is in them: plain values, without settings or messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What every round of a task asks of a device.

    Attributes:
        local_epochs, batch_size, learning_rate: of the local training.
        clipping_norm: largest L2 norm of an update; 0: none.
        hyperparameters: further numbers for the application's trainer.
        device_noise_multiplier: z of the noise that each device adds; 0: it adds none.
        reports_clipping: whether devices tell if their update was within the norm.
    """

    local_epochs: int
    batch_size: int
    learning_rate: float
    clipping_norm: float
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    device_noise_multiplier: float = 0.0
    reports_clipping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """How rounds begin and end.

    Attributes:
        num_rounds: model versions to publish.
        reporting_goal: contributions that end the collection at once.
        min_contributions: fewer at the deadline abandon the round.
        selection_timeout_s: after it, a cohort of `min_contributions` will do.
        collection_timeout_ms: from the selection to the deadline.
        is_sampled: whether a claim of privacy rests on how cohorts are drawn.
        population: devices that such cohorts are drawn from.
        seed: of every round's selection; None: a secret draw of its own for each.
        max_staleness: versions before the round's that updates may start from.
    """

    num_rounds: int
    reporting_goal: int
    min_contributions: int
    selection_timeout_s: float
    collection_timeout_ms: int
    is_sampled: bool = False
    population: int = 0
    seed: int | None = None
    max_staleness: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTerms:
    """What is claimed of a task's privacy, as people are told.

    Attributes:
        noise: who adds it; "none".
        mechanism, sampling: as a `Charge` names them.
        accountant: what enforces the budget.
        epsilon, delta: the budget.
    """

    noise: str
    mechanism: str
    sampling: str
    accountant: str
    epsilon: float
    delta: float
