"""A fleet of simulated devices: what its processes share, and how they run the devices."""

from collections.abc import Sequence

from simulation.fleet.device_spec import DeviceSpec
from simulation.fleet.fleet import Fleet, FleetConfig
from simulation.fleet.scenarios import local_data
from simulation.fleet.simulated_device import run_all


def device_fleet(
    specs: Sequence[DeviceSpec], config: FleetConfig | None = None
) -> Fleet[DeviceSpec]:
    """Make a fleet that runs the devices until their task is finished or the fleet is stopped."""
    return Fleet(specs, run_all, prepare=load_shared, config=config)


def load_shared(specs: Sequence[DeviceSpec]) -> None:
    """Load what every process needs, once: the data and its split, the loops of sharing.

    The client came with this module: grpc may be imported before a fork, but not used.

    Raises:
        DatasetError: if the data set cannot be loaded.
        PartitionError: if it has too few samples for the population.
    """
    if any(spec.committee is not None for spec in specs):
        # A compiler takes seconds to load; a fleet whose tasks are plain must not wait for it.
        from security.secret_sharing.warm_up import warm_up  # noqa: PLC0415

        warm_up()
    for scenario, data_dir in {(spec.scenario, spec.data_dir) for spec in specs}:
        local_data(scenario, 0, data_dir)
