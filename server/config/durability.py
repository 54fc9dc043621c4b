"""What an acknowledged write survives."""

from enum import Enum


class Durability(Enum):
    """What an acknowledged update survives."""

    PROCESS = "process"  # any process may die, the machine stays up
    MACHINE = "machine"  # the machine may lose power
