"""Where state lies: control state in Redis, models and payloads in a blob store."""
