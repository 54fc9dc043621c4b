"""From an update to what is sent of it, and back: the same functions on devices and servers."""

import numpy as np

from updates.compression_plan import CompressionPlan, Method
from updates.coordinate_maps import linear_map
from updates.errors import CompressionError
from updates.sparse import Content, SparseValues
from updates.topk import Vector, top_k


def compress(plan: CompressionPlan, vector: Vector) -> Content:
    """Reduce an update to what the plan asks for; coding of the numbers comes after.

    Args:
        plan: the round's compression.
        vector: (d,), float32: the update, with error feedback plus what was kept. Not modified.

    Returns:
        Dense: `vector` itself. Top-k: its k largest coordinates, fewer where fewer are nonzero.
        Else: what the plan's common linear map gives, (k,).

    Raises:
        CompressionError: if `vector` is no float32 vector of the plan's d coordinates, or a
            number that would be sent is not finite.

    Guarantees:
        The same for the same arguments, on every machine. `expand` of the result is at most as
        long as `vector`, and is what remains of it: expanding and compressing again changes
        nothing, up to rounding.

    Cost: O(d) time.
    """
    if vector.shape != (plan.dim,) or vector.dtype != np.float32:
        message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape ({plan.dim},)"
        raise CompressionError(message)
    match plan.method:
        case Method.DENSE:
            if not np.isfinite(vector).all():
                message = f"vector[{int(np.argmin(np.isfinite(vector)))}] must be finite"
                raise CompressionError(message)
            return vector
        case Method.TOP_K:
            indices = top_k(vector, plan.num_values)
            return SparseValues(indices=indices, values=vector[indices], dim=plan.dim)
        case Method.RAND_K | Method.ANNOUNCED | Method.PROJECTION:
            return linear_map(plan).compress(vector)


def expand(plan: CompressionPlan, content: Content) -> Vector:
    """Give the update that content stands for.

    Args:
        plan: the round's compression.
        content: what `compress` gave, as coded and decoded. Not modified.

    Returns:
        (d,), float32; with a dense plan `content` itself.

    Raises:
        CompressionError: if the content is not of the plan's kind or size.

    Guarantees:
        Linear in the content. As long as the content, up to rounding.

    Cost: O(d) time.
    """
    if plan.method is Method.TOP_K:
        if not isinstance(content, SparseValues) or content.dim != plan.dim:
            message = f"content must be chosen coordinates of dim={plan.dim}"
            raise CompressionError(message)
        expanded = np.zeros(plan.dim, np.float32)
        expanded[content.indices] = content.values
        return expanded
    if isinstance(content, SparseValues):
        message = f"content of chosen coordinates must not come with method={plan.method.value}"
        raise CompressionError(message)
    if plan.method is not Method.DENSE:
        return linear_map(plan).expand(content)
    if content.shape != (plan.dim,) or content.dtype != np.float32:
        message = f"content of {content.dtype}{content.shape} must be float32 of shape"
        message += f" ({plan.dim},)"
        raise CompressionError(message)
    return content
