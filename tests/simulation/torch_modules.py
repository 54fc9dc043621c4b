"""The models of the simulation as torch modules. Needs torch."""

from itertools import pairwise

import torch
from torch import nn

from client import Weights


def module_of(sizes: tuple[int, ...], weights: Weights | None = None) -> nn.Sequential:
    """Build the stack of dense layers, and fill it."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    if weights is not None:
        module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return module
