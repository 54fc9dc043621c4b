"""`fedagg demo`: the whole service and a fleet of devices, trained to a first result."""
