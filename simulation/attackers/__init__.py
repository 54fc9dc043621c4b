"""What poisoned devices send."""
