"""What a shared round costs beside a plain one, and beside Flower's SecAgg+."""
