"""The aggregator for differential privacy: clips, sums exactly, adds noise once.

What is published: (sum of the clipped updates on an integer grid + discrete Gaussian noise) / m,
with m fixed in advance. Everything else that is computed on the way belongs to the server alone;
it stands in `PrivateFacts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.base import Update, require_updates
from aggregators.compressed import AnyUpdate, SparseUpdate
from aggregators.dp_config import DPConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES
from aggregators.rows.rows import Floats, Rows, Vector
from aggregators.rows.sparse_rows import SparseRows
from aggregators.rule import Context
from privacy.banded_noise import BandedNoise, History, no_history
from privacy.charge import Mechanism
from privacy.clipping import clip_scale, l2_norm
from privacy.fixed_point import check_sum, from_grid, grid_norm, to_grid
from privacy.keystream import derive_key
from privacy.noise import round_key

__all__ = [
    "NOBODY",
    "DPConfig",
    "DPGradientAggregator",
    "PrivateAggregate",
    "PrivateFacts",
    "RoundNoise",
]

NOBODY: Final = ""
"""Key of the zero update that stands for a round without any; its bit does not count."""

_COUNT_LABEL: Final = b"clipping count"
_CHUNK: Final = 1 << 16  # coordinates at a time: half a megabyte of float64
_NO_FLAGS: Final[Mapping[str, bool]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundNoise:
    """What decides the noise of one round. Secret: whoever has it can subtract the noise.

    Attributes:
        noise_key: the task's, 32 secret bytes.
        round_number: of the round; with banded noise the step, from 1.
        manifest_sha256: 32 bytes naming the contributions; see `privacy.noise.round_key`.
        history: of banded noise: gives `PrivateFacts.noise` of earlier rounds, where kept.
    """

    noise_key: bytes = field(repr=False)
    round_number: int
    manifest_sha256: bytes
    history: History = field(default=no_history, repr=False)

    @property
    def key(self) -> bytes:
        """The key of this round's own noise."""
        return round_key(
            self.noise_key, round_number=self.round_number, manifest_sha256=self.manifest_sha256
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrivateFacts:
    """What the server may know and must not publish: no noise hides it. n in the order of keys.

    Attributes:
        keys: the updates' keys, ascending.
        norms: (n,), float64: L2 norms before clipping, without weights.
        num_clipped: updates that were shrunk.
        weights: (n,), float64, in 0..1: of each update in the sum, before clipping; 0: excluded.
        selected: (n,), bool: updates in the sum.
        scores: (n,), float64: of a rule that selects; None for "mean".
        noise: (d,), int64: what was added, in units of 2^-f. Banded noise needs it again; whoever
            gets hold of it can subtract it.
    """

    keys: tuple[str, ...]
    norms: Floats
    num_clipped: int
    weights: Floats
    selected: NDArray[np.bool_]
    scores: Floats | None
    noise: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrivateAggregate:
    """What a round's updates became. All but `private` may be published.

    Attributes:
        vector: (d,), float64: the noisy sum over m.
        num_updates: n. Who takes part is not protected, only what they send.
        noise_stddev: of each coordinate of `vector`; with banded noise: of the innovation.
        clipping_norm: C that was applied.
        within_fraction: noisy share of updates within C; None without adaptive clipping.
        next_clipping_norm: C of the next round; None without adaptive clipping.
        private: for the server alone.
    """

    vector: Floats
    num_updates: int
    noise_stddev: float
    clipping_norm: float
    within_fraction: float | None = None
    next_clipping_norm: float | None = None
    private: PrivateFacts = field(repr=False)


class DPGradientAggregator:
    """Combines a round's updates privately. Holds no state: safe to share between threads."""

    def __init__(self, config: DPConfig, *, engine: Engine = LOCAL) -> None:
        """Prepare the rule and the noise.

        Args:
            config: the rule, the bounds and the noise.
            engine: what compares dense updates, for multi-krum; sparse ones are compared, and
                every sum is made, in this process. Never changes a result.
        """
        self._config = config
        self._engine = engine
        self._rule = make_rule(config.aggregator)

    def aggregate(
        self,
        updates: Sequence[AnyUpdate],
        noise: RoundNoise,
        within_norm: Mapping[str, bool] = _NO_FLAGS,
    ) -> PrivateAggregate:
        """Clip, select, sum and add noise.

        Args:
            updates: n updates of one dimension, in any order: all dense, or all sparse. Not
                modified.
            noise: what decides the noise.
            within_norm: by update key, what the device says of its update before it clipped it; for
                adaptive clipping. Others are measured here.

        Returns:
            The noisy mean, and what the server may know beside it.

        Raises:
            TooFewUpdatesError: if multi-krum needs more updates for the configured f.
            AggregationError: if there are no updates, a key repeats, a sample count is below 1,
                vectors are not finite float32 vectors of one dimension, or only some are sparse.
            PrivacyError: if a key, a digest or the round number is out of range, or the sum might
                not fit.

        Guarantees:
            Clips by itself: no update adds more than C to the sum, whatever was sent.
            The noise's standard deviation is z times the sensitivity of the integer sum, rounding
            included, whatever came in.
            Invariant to the order of `updates`, bit for bit; the same on every machine.
            The same round and manifest get the same noise, another manifest independent noise.
            `vector`, `within_fraction` and `next_clipping_norm` together are one Gaussian
            mechanism of multiplier z, up to `privacy.discrete_gaussian.MAX_DISTANCE` a coordinate;
            with banded noise see `privacy.banded_noise`.

        Cost: O(n d) time, O(d) memory; that of the rule for multi-krum; 15 ns a coordinate of
            noise where it is compiled.
        """
        config = self._config
        ordered = sorted(updates, key=lambda update: update.key)
        require_updates(ordered)
        dim = _common_dim(ordered)
        norm = grid_norm(config.clipping_norm, fraction_bits=config.fraction_bits, dim=dim)
        check_sum(num_terms=len(ordered), norm=norm)
        drawn = self._draw(noise, dim)
        facts, scales = self._select(ordered, drawn)
        total = _scaled_sum(ordered, scales, dim, config.fraction_bits)
        total += drawn
        fraction, next_norm = self._moved_norm(facts, noise, within_norm)
        return PrivateAggregate(
            vector=from_grid(
                total, fraction_bits=config.fraction_bits, divisor=config.expected_updates
            ),
            num_updates=len(ordered),
            noise_stddev=config.noise(dim=dim).real_stddev / config.expected_updates,
            clipping_norm=config.clipping_norm,
            within_fraction=fraction,
            next_clipping_norm=next_norm,
            private=facts,
        )

    def _draw(self, noise: RoundNoise, dim: int) -> NDArray[np.int64]:
        config = self._config
        grid = config.noise(dim=dim)
        if config.mechanism is Mechanism.BANDED:
            return BandedNoise(config.bands).step(
                noise.round_number,
                noise.noise_key,
                stddev=grid.stddev,
                dim=dim,
                history=noise.history,
            )
        return grid.draw(noise.key, dim)

    def _select(
        self, updates: Sequence[AnyUpdate], drawn: NDArray[np.int64]
    ) -> tuple[PrivateFacts, Floats]:
        """Weigh the updates; give the factors that bring each within C, or to nothing, too."""
        config = self._config
        norms = np.array([_finite_norm(update) for update in updates])
        cap = config.max_num_samples
        weights = np.array([min(update.num_samples, cap) / cap for update in updates])
        scores = None
        if not RULES[config.rule].is_linear:
            clips = np.array([clip_scale(norm, config.clipping_norm) for norm in norms.tolist()])
            rows = _rows(updates, self._engine).scaled(clips)
            result = self._rule(rows, Context(weights=np.ones(len(updates))))
            weights, scores = result.selected.astype(np.float64), result.scores
        weighted = (weights * norms).tolist()
        scales = weights * [clip_scale(norm, config.clipping_norm) for norm in weighted]
        facts = PrivateFacts(
            keys=tuple(update.key for update in updates),
            norms=norms,
            num_clipped=int(np.count_nonzero(weights * norms > config.clipping_norm)),
            weights=weights,
            selected=weights > 0.0,
            scores=scores,
            noise=drawn,
        )
        return facts, scales

    def _moved_norm(
        self, facts: PrivateFacts, noise: RoundNoise, within_norm: Mapping[str, bool]
    ) -> tuple[float | None, float | None]:
        config, adaptive = self._config, self._config.adaptive_clipping
        if adaptive is None:
            return None, None
        measured = zip(facts.keys, (facts.norms <= config.clipping_norm).tolist(), strict=True)
        bits = [within_norm.get(key, is_within) for key, is_within in measured if key != NOBODY]
        fraction = adaptive.noisy_fraction(
            num_within=sum(bits),
            num_updates=len(bits),
            expected_updates=config.expected_updates,
            key=derive_key(noise.key, _COUNT_LABEL),
        )
        return fraction, adaptive.next_norm(config.clipping_norm, fraction)


def _scaled_sum(
    updates: Sequence[AnyUpdate], scales: Floats, dim: int, fraction_bits: int
) -> NDArray[np.int64]:
    """Sum the updates on the grid: integers, so that their order leaves no trace."""
    total = np.zeros(dim, np.int64)
    for update, scale in zip(updates, scales.tolist(), strict=True):
        if scale == 0.0:
            continue
        values = _values(update)
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            scaled = values[part].astype(np.float64)
            scaled *= scale
            integers = to_grid(scaled, fraction_bits=fraction_bits)
            if isinstance(update, SparseUpdate):
                total[update.vector.indices[part]] += integers  # indices do not repeat
            else:
                total[part] += integers
    return total


def _common_dim(updates: Sequence[AnyUpdate]) -> int:
    first = updates[0]
    for update in updates:
        if isinstance(update, SparseUpdate) != isinstance(first, SparseUpdate):
            message = f"updates {first.key!r} and {update.key!r} must both be sparse, or none"
            raise AggregationError(message)
        values = _values(update)
        if values.ndim != 1 or values.dtype != np.float32 or _dim(update) < 1:
            message = f"update {update.key!r} of {values.dtype}{values.shape} must be float32 of"
            message += " shape (d,), d >= 1"
            raise AggregationError(message)
        if _dim(update) != _dim(first):
            message = f"update {update.key!r} of dim={_dim(update)} must have the same dimension"
            message += f" as update {first.key!r} of dim={_dim(first)}"
            raise AggregationError(message)
    return _dim(first)


def _values(update: AnyUpdate) -> Vector:
    return update.vector.values if isinstance(update, SparseUpdate) else update.vector


def _dim(update: AnyUpdate) -> int:
    if isinstance(update, SparseUpdate):
        return update.vector.dim
    return int(update.vector.size)


def _finite_norm(update: AnyUpdate) -> float:
    norm = l2_norm(_values(update))
    if not np.isfinite(norm):
        message = f"update {update.key!r} must be finite: it holds NaN or infinity"
        raise AggregationError(message)
    return norm


def _rows(updates: Sequence[AnyUpdate], engine: Engine) -> Rows:
    sparse = [update.vector for update in updates if isinstance(update, SparseUpdate)]
    if sparse:
        return SparseRows.of(sparse)
    return engine.rows([update.vector for update in updates if isinstance(update, Update)])
