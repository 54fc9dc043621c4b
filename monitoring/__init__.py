"""What an operator sees: metrics, traces, structured logs, health and the audit log."""
