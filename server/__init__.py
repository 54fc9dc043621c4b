"""The servers: the coordinator, which drives rounds and answers devices, and the share holder."""
