"""One device that seals one update: `python -m benchmarks.secure.sealing_child FORMAT DIM`.

Says "sealed" once it has made and read the whole bundle, and waits for its standard input to end:
the process that started it reads how much memory that took.
"""

import sys

from benchmarks.secure.parties import Parties, Shape, device_id_of, random_update
from security.shared_round.update.bundle import SealedUpdate

READ_BYTES = 512 << 10
"""What the device SDK sends at a time."""


def read_all(update: SealedUpdate) -> int:
    """Read a bundle as an upload does, digest first; return its length."""
    update.digest  # noqa: B018  # the upload's header has it
    for start in range(0, len(update), READ_BYTES):
        update.read(start, READ_BYTES)
    return len(update)


def main() -> None:
    """Seal one update."""
    share_format, dim = sys.argv[1], int(sys.argv[2])
    parties = Parties.meet()
    params = parties.round_of(Shape(format=share_format, checks="norm", dim=dim, clients=100))
    read_all(parties.seal(params, device_id_of(0), random_update(dim, seed=dim)))
    sys.stdout.write("sealed\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
