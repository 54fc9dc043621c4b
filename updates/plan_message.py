"""A compression plan as the message that devices get, and back."""

from typing import Final

from google.protobuf.message import DecodeError

from protos.fedagg.v1 import federation_pb2 as pb
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.errors import CompressionError

_METHODS: Final = {
    Method.DENSE: pb.CompressionPlan.DENSE,
    Method.TOP_K: pb.CompressionPlan.TOP_K,
    Method.RAND_K: pb.CompressionPlan.RAND_K,
    Method.ANNOUNCED: pb.CompressionPlan.ANNOUNCED,
    Method.PROJECTION: pb.CompressionPlan.PROJECTION,
}
_VALUE_TYPES: Final = {
    ValueType.FLOAT32: pb.CompressionPlan.FLOAT32,
    ValueType.FLOAT16: pb.CompressionPlan.FLOAT16,
    ValueType.BFLOAT16: pb.CompressionPlan.BFLOAT16,
    ValueType.INT8: pb.CompressionPlan.INT8,
    ValueType.INT4: pb.CompressionPlan.INT4,
}
_METHOD_OF: Final = {number: method for method, number in _METHODS.items()}
_VALUE_TYPE_OF: Final = {number: kind for kind, number in _VALUE_TYPES.items()}


def to_message(plan: CompressionPlan) -> pb.CompressionPlan:
    """Write a plan; the dimension is the assignment's."""
    return pb.CompressionPlan(
        method=_METHODS[plan.method],
        num_values=plan.num_values,
        value_type=_VALUE_TYPES[plan.value_type],
        map_seed=plan.map_seed,
        coordinates=plan.coordinates,
        error_feedback=plan.error_feedback,
        residual_decay=plan.residual_decay,
        max_residual_age=plan.max_residual_age,
        zstd_version=plan.zstd_version,
    )


def from_message(message: pb.CompressionPlan, *, dim: int) -> CompressionPlan:
    """Read a plan.

    Raises:
        CompressionError: if a field is unknown or out of range.
    """
    try:
        method, value_type = _METHOD_OF[message.method], _VALUE_TYPE_OF[message.value_type]
    except KeyError as error:
        text = f"method={message.method} and value_type={message.value_type} must be known"
        raise CompressionError(text) from error
    return CompressionPlan(
        method=method,
        dim=dim,
        num_values=message.num_values,
        value_type=value_type,
        map_seed=message.map_seed,
        coordinates=message.coordinates,
        error_feedback=message.error_feedback,
        residual_decay=message.residual_decay,
        max_residual_age=message.max_residual_age,
        zstd_version=message.zstd_version,
    )


def to_bytes(plan: CompressionPlan) -> bytes:
    """Serialize; equal plans give equal bytes, which shared rounds are bound to by hash."""
    return to_message(plan).SerializeToString(deterministic=True)


def from_bytes(data: bytes, *, dim: int) -> CompressionPlan:
    """Read what `to_bytes` wrote.

    Raises:
        CompressionError: if it is anything else.
    """
    try:
        message = pb.CompressionPlan.FromString(data)
    except DecodeError as error:
        text = "the bytes are no CompressionPlan message"
        raise CompressionError(text) from error
    plan = from_message(message, dim=dim)
    if to_bytes(plan) != data:
        text = "a compression plan must be in its one canonical form"
        raise CompressionError(text)
    return plan
