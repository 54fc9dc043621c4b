"""`fedagg device`: a population of simulated devices."""
