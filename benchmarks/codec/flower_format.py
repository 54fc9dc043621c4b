"""Flower's dense format. Imported only if Flower is installed."""

from collections.abc import Sequence

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.serde import parameters_from_proto, parameters_to_proto
from flwr.proto.transport_pb2 import Parameters
from numpy.typing import NDArray


def write(tensors: Sequence[NDArray[np.float32]]) -> bytes:
    """Write the tensors as Flower sends them."""
    message = parameters_to_proto(ndarrays_to_parameters(list(tensors)))
    data: bytes = message.SerializeToString()
    return data


def read(data: bytes) -> object:
    """Read them back."""
    return parameters_to_ndarrays(parameters_from_proto(Parameters.FromString(data)))
