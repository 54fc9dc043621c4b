"""What a holder keeps: its ledger, its files, the state of its rounds."""
