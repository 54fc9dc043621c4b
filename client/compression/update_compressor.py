"""From a local update to the numbers that are sent of it, and what remains of it on the device.

p = delta + what was kept     error feedback, where the plan asks for it
s = compress(p)               the plan's coordinates, or its common linear map
c s, at most C long           clipped after the map: sums and noise refer to what is sent
c s + noise                   where devices add noise
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from client.errors import TrainingError
from client.trainer import Plan
from privacy.clipping import clip_scale, l2_norm, scale_vector
from privacy.errors import PrivacyError
from updates import error_feedback
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.compressor import compress, expand
from updates.errors import CompressionError
from updates.sparse import Content, SparseValues
from updates.topk import Vector

NoiseAdder: TypeAlias = Callable[[Vector, Plan], Vector]
"""Adds a device's own noise to clipped numbers, as the plan asks."""

# The memory of a map that keeps k/d of a vector's square never grows beyond 2 d/k times the longest
# update: Karimireddy et al. (2019), arXiv:1901.09847, Lemma 3.
_MEMORY_FACTOR: Final = 2.0

# Of what is sent, in clipping norms: rounding to 8 bits and more stays well below.
_TOLERATED_LENGTH: Final = 1.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressedUpdate:
    """What is sent of an update.

    Attributes:
        content: what is encoded or sealed: clipped, with the device's noise.
        clipped: the same without noise.
        wanted: (d,), float32: what should have been sent.
        scale: c, the factor that clipping scaled by, in (0, 1].
        max_remaining_norm: what the device keeps of it is at most so long.
        is_within_norm: whether it was within the clipping norm before; True without one.
    """

    content: Content
    clipped: Content
    wanted: Vector
    scale: float
    max_remaining_norm: float
    is_within_norm: bool


class UpdateCompressor:
    """Compresses updates of one round. For any thread."""

    def __init__(
        self,
        plan: CompressionPlan,
        terms: Plan,
        *,
        clips: bool = True,
        add_noise: NoiseAdder | None = None,
        clips_noise: bool = False,
    ) -> None:
        """Prepare for a round.

        Args:
            plan: the round's compression.
            terms: its clipping norm and noise.
            clips: whether what is sent is clipped.
            add_noise: adds the noise that `terms` ask for; None: none is added.
            clips_noise: whether what is sent is clipped once more, with its noise. It is no less
                private then, and smaller.
        """
        self._plan = plan
        self._terms = terms
        self._clips = clips
        self._add_noise = add_noise
        self._clips_noise = clips_noise

    def compress(self, delta: Vector, carried: Vector | None) -> CompressedUpdate:
        """Map, clip and noise an update.

        Args:
            delta: (d,), float32: the update. Not modified.
            carried: (d,), float32: what is added to it; None: nothing.

        Raises:
            TrainingError: if the update is no finite vector of d float32.
        """
        if delta.shape != (self._plan.dim,) or delta.dtype != np.float32:
            raise TrainingError(
                f"the update is {delta.shape} {delta.dtype}, expected ({self._plan.dim},) float32"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # the next step tells it better
            wanted = delta if carried is None else delta + carried
        try:
            mapped = compress(self._plan, wanted)
            scale, is_within = self._clip_scale(mapped)
            clipped = _scaled(mapped, scale)
            content, shrink = self._noised(clipped)
        except (CompressionError, PrivacyError) as error:
            raise TrainingError(f"the update cannot be compressed: {error}") from error
        return CompressedUpdate(
            content=content,
            clipped=clipped if content is clipped else _scaled(clipped, shrink),
            wanted=wanted,
            scale=scale * shrink,
            max_remaining_norm=self._max_remaining_norm(delta, carried),
            is_within_norm=is_within,
        )

    def shortened(self, update: CompressedUpdate, received: Content) -> CompressedUpdate | None:
        """Scale an update down that rounding has made longer than it may be; None: it is not.

        Numbers in few bits may be longer than what they stand for. A server that clips would then
        take less of the update than the device counts as sent.

        Args:
            update: as `compress` gave it.
            received: its content as the server decodes it.
        """
        limit = self._terms.clipping_norm
        if not limit or not self._clips or self._add_noise is not None:
            return None
        length = l2_norm(_values(received))
        if length <= limit * _TOLERATED_LENGTH:
            return None
        shrink = clip_scale(length, limit)
        content = _scaled(update.content, shrink)
        return replace(update, content=content, clipped=content, scale=update.scale * shrink)

    def remaining(self, update: CompressedUpdate, received: Content) -> Vector:
        """Compute what the device keeps once the update counts.

        Args:
            update: as `compress` gave it.
            received: its content as the server decodes it.

        Returns:
            (d,), float32: what selection and coding left out. Not what clipping cut off, which
            would come back for ever, and not the noise, which the device must not take back.

        Guarantees:
            Its norm is at most 2 d/k times that of this update, or of an earlier one, or the
            clipping norm, whichever is the largest. Error feedback alone never comes so far.
        """
        values, noised, clipped = (
            _values(content) for content in (received, update.content, update.clipped)
        )
        if noised is not clipped:
            noise = noised.astype(np.float64) - clipped
            received = _with_values(received, (values - noise).astype(np.float32))
        return error_feedback.remaining(
            update.wanted,
            expand(self._plan, received),
            scale=update.scale,
            max_norm=update.max_remaining_norm,
        )

    def _max_remaining_norm(self, delta: Vector, carried: Vector | None) -> float:
        longest = max(l2_norm(delta), self._terms.clipping_norm, error_feedback.MIN_MAX_NORM)
        own = _MEMORY_FACTOR * self._plan.dim / self._plan.num_values * longest
        # What earlier, longer updates have left may stay.
        return own if carried is None else max(own, l2_norm(carried))

    def _clip_scale(self, mapped: Content) -> tuple[float, bool]:
        """Return what the numbers are scaled by, and whether they were within the norm."""
        limit = self._terms.clipping_norm
        if not limit:
            return 1.0, True
        scale = clip_scale(l2_norm(_values(mapped)), limit)
        return scale if self._clips else 1.0, scale == 1.0

    def _noised(self, clipped: Content) -> tuple[Content, float]:
        """Return the numbers with noise, and what both were scaled by then."""
        if self._add_noise is None:
            return clipped, 1.0
        noised = self._add_noise(_values(clipped), self._terms)
        scale = 1.0
        if self._clips_noise:
            scale = clip_scale(l2_norm(noised), self._terms.clipping_norm)
        return _with_values(clipped, scale_vector(noised, scale)), scale


def compresses(plan: CompressionPlan) -> bool:
    """Return whether the plan changes anything: if not, updates are dense float32."""
    return (
        plan.method is not Method.DENSE
        or plan.value_type is not ValueType.FLOAT32
        or plan.error_feedback
    )


def _values(content: Content) -> Vector:
    return content.values if isinstance(content, SparseValues) else content


def _scaled(content: Content, scale: float) -> Content:
    return content if scale == 1.0 else _with_values(content, scale_vector(_values(content), scale))


def _with_values(content: Content, values: Vector) -> Content:
    if isinstance(content, SparseValues):
        return replace(content, values=values)
    return values
