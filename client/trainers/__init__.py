"""Trainers for other libraries, each loaded only by who has the library."""
