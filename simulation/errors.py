"""What the simulation refuses.

SimulationError
├── DatasetError      a data set is unknown, absent or damaged
├── PartitionError    a split that the samples cannot satisfy
├── SampleModelError        weights that are no model of ours
├── ScenarioError     a scenario that contradicts itself
└── FleetError        a fleet used in the wrong order, or whose processes could not start
"""


class SimulationError(ValueError):
    """Root of the errors of this package."""


class DatasetError(SimulationError):
    """A data set is unknown, absent or damaged; the message says how to get it."""


class PartitionError(SimulationError):
    """The samples cannot be split as asked."""


class SampleModelError(SimulationError):
    """The weights do not form a model of this package."""


class ScenarioError(SimulationError):
    """A scenario holds a value out of range, or two that contradict each other."""


class FleetError(SimulationError):
    """A fleet was used in the wrong order, or its processes could not start."""
