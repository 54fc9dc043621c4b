"""What the parties of a shared round agree on, seal, sign and compute: pure, no I/O."""
