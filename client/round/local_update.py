"""From trained weights to the bytes that are sent: difference, clip, encode."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.errors import TrainingError
from client.round.model_cache import ReceivedModel
from client.trainer import TrainingResult
from privacy.clipping import clip_by_norm, l2_norm
from privacy.errors import PrivacyError
from protos.wire import MAX_NUM_SAMPLES
from updates.codec import CodecError, encode_dense
from updates.errors import ModelError
from updates.sparse import Content, SparseValues
from updates.vectors import flatten


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """A clipped update, (d,) float32, and what the server learns about its training.

    Attributes:
        vector: trained minus received weights in model order, clipped.
        norm: L2 norm before clipping.
        layer_sizes: elements of each tensor, in model order.
    """

    vector: NDArray[np.float32]
    norm: float
    num_samples: int
    loss_before: float | None
    loss_after: float | None
    layer_sizes: tuple[int, ...]


def local_update(
    model: ReceivedModel, result: TrainingResult, *, clipping_norm: float
) -> LocalUpdate:
    """Return trained minus received weights, at most `clipping_norm` long (0: as they are).

    Raises:
        TrainingError: if the weights have other names or shapes than the model, if anything is
            not finite, or if `num_samples` is not in 1 to 2^31 - 1.

    Cost: O(d) time and memory.
    """
    if not 1 <= result.num_samples <= MAX_NUM_SAMPLES:
        raise TrainingError(f"num_samples={result.num_samples} must lie in [1, {MAX_NUM_SAMPLES}]")
    try:
        trained = flatten(result.weights, model.layout)
        with np.errstate(over="ignore", invalid="ignore"):  # the check below tells it better
            delta = trained - flatten(model.tensors, model.layout)
    except ModelError as error:
        raise TrainingError(f"the trained weights do not fit the model: {error}") from error
    if not np.isfinite(delta).all():
        raise TrainingError("training diverged: the update holds NaN or infinity")
    try:
        clipped = clip_by_norm(delta, clipping_norm) if clipping_norm else delta
    except PrivacyError as error:
        raise TrainingError(f"the update cannot be clipped: {error}") from error
    return LocalUpdate(
        vector=clipped,
        norm=l2_norm(delta),
        num_samples=result.num_samples,
        loss_before=_finite_or_none(result.loss_before),
        loss_after=_finite_or_none(result.loss_after),
        layer_sizes=tuple(spec.size for spec in model.layout.tensors),
    )


def encode_update(vector: Content, *, dim: int) -> bytes:
    """Return the payload for `vector`.

    Raises:
        TrainingError: if `vector` is not (dim,) float32, or not finite.
    """
    if isinstance(vector, SparseValues):
        raise TrainingError("the update is of chosen coordinates, expected all of them")
    if vector.shape != (dim,):
        raise TrainingError(f"the update has shape {vector.shape}, expected ({dim},)")
    try:
        return encode_dense(vector)
    except CodecError as error:
        raise TrainingError(f"the update cannot be encoded: {error}") from error


def _finite_or_none(loss: float | None) -> float | None:
    # The wire knows finite losses only; a diverged one says no more than a missing one.
    return loss if loss is not None and math.isfinite(loss) else None
