"""`fedagg serve`: a service on this machine, its store and its workers."""
