"""Turns a round's updates into one aggregate: robust rules and the aggregators built on them.

Names are loaded on first use: who needs one of them must not load the compiler of the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aggregators.base import Aggregate, GradientAggregator, ServerKnowledge, Update
    from aggregators.byzantine import ByzantineConfig, ByzantineRobustAggregator
    from aggregators.compressed import CompressedGradientAggregator, SparseUpdate
    from aggregators.config import AggregatorConfig
    from aggregators.dp import DPConfig, DPGradientAggregator, PrivateAggregate, RoundNoise
    from aggregators.errors import AggregationError
    from aggregators.integrated import IntegratedConfig, IntegratedFederatedAggregator
    from aggregators.secure import SecureAggregator

__all__ = [
    "Aggregate",
    "AggregationError",
    "AggregatorConfig",
    "ByzantineConfig",
    "ByzantineRobustAggregator",
    "CompressedGradientAggregator",
    "DPConfig",
    "DPGradientAggregator",
    "GradientAggregator",
    "IntegratedConfig",
    "IntegratedFederatedAggregator",
    "PrivateAggregate",
    "RoundNoise",
    "SecureAggregator",
    "ServerKnowledge",
    "SparseUpdate",
    "Update",
]

_HOMES: Final = {
    "Aggregate": "aggregators.base",
    "AggregationError": "aggregators.errors",
    "AggregatorConfig": "aggregators.config",
    "ByzantineConfig": "aggregators.byzantine",
    "ByzantineRobustAggregator": "aggregators.byzantine",
    "CompressedGradientAggregator": "aggregators.compressed",
    "DPConfig": "aggregators.dp_config",
    "DPGradientAggregator": "aggregators.dp",
    "GradientAggregator": "aggregators.base",
    "IntegratedConfig": "aggregators.integrated",
    "IntegratedFederatedAggregator": "aggregators.integrated",
    "PrivateAggregate": "aggregators.dp",
    "RoundNoise": "aggregators.dp",
    "SecureAggregator": "aggregators.secure",
    "ServerKnowledge": "aggregators.base",
    "SparseUpdate": "aggregators.compressed",
    "Update": "aggregators.base",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(home), name)
