"""The `fedagg` command: run the service, simulated devices, a demonstration, administration."""
