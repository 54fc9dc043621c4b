"""The round, without I/O: its states, who is selected, what is recorded, and the ports."""
