"""What the parties of a shared round hold each other to."""
