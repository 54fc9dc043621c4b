"""`fedagg config`: settings looked at before anything starts."""
