"""The coordinator's side of shared rounds: it relays, asks, puts together and learns no update."""
