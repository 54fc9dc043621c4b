"""A shared round as a source of contributions: the sums that its holders opened."""

from dataclasses import dataclass

from aggregators.errors import AggregationError
from aggregators.integrated import OpenedMeans, SharedSums, StepReport
from server.round.candidate import RoundFacts
from server.round.plain_source import common_map
from server.round.round_privacy import RoundPrivacy
from server.sharing.released_sums import ReleasedSums
from updates.compression_plan import CompressionPlan
from updates.vectors import ModelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRound:
    """`RoundSource` of a shared round.

    One sum is the aggregate itself, as a weighted mean. Of several, the means of the groups are the
    rows that the task's rule aggregates, each with the weight of its group. The one sum of a
    private round, in which the holders' noise is, is divided by a number fixed in advance.

    Attributes:
        released: the sums.
        compression: of the round: the aggregate is expanded once. None: it is of whole updates.
        privacy: of the round; None: no noise is in the sums.
    """

    released: ReleasedSums
    compression: CompressionPlan | None = None
    privacy: RoundPrivacy | None = None

    def contributions(self, layout: ModelLayout) -> SharedSums:  # noqa: ARG002  # sums are whole
        """Give the sums, and what makes means of them.

        Raises:
            AggregationError: if a private round has several sums or no noise in them.
        """
        self._check_privacy()
        released = self.released
        weights: tuple[float, ...] = released.weights
        if self.privacy is not None:
            weights = (self.privacy.expected_updates,)
        return SharedSums(
            sums=released.opened.sums,
            divisors=weights,
            fraction_bits=released.params.fraction_bits,
            linear_map=common_map(self.compression),
        )

    def facts(self, report: StepReport) -> RoundFacts:
        """Count members, groups and liars.

        Raises:
            TypeError: if the report is of another mode.
        """
        means, released = report.combined, self.released
        if not isinstance(means, OpenedMeans):
            msg = f"a shared round made a {type(means).__name__}"
            raise TypeError(msg)
        metrics = {
            "contributions": float(released.members + len(released.excluded)),
            "excluded": float(len(released.excluded)),
            "excluded_groups": float(means.num_excluded),
            "groups": float(means.num_groups),
            "num_clipped": 0.0,
            "update_norm": report.update_norm,
        }
        return RoundFacts(excluded=released.excluded, metrics=metrics, liars=released.opened.liars)

    def _check_privacy(self) -> None:
        opened, params = self.released.opened, self.released.params
        if self.privacy is not None and (len(opened.sums) != 1 or not params.has_noise):
            msg = (
                f"a private round must have one sum with noise, got {len(opened.sums)} and"
                f" {params.noise_dealers} dealers"
            )
            raise AggregationError(msg)
