"""How the speed of the aggregation rules changed on this machine."""
