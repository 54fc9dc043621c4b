"""Who may speak: certificates, enrollment tokens, and the checks on them. No I/O, no clock."""
