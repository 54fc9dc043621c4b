"""`fedagg admin`: look into and steer a running server; keys, tokens and the audit log."""
