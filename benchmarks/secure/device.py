"""What a device pays to share an update, beside what it pays to encode a plain one.

`python -m benchmarks.secure.device FORMAT DIM` is one device that seals one update: it says
"sealed" once it has made and read the whole bundle, and waits for its standard input to end. The
process that started it reads how much memory that took.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import xxhash

from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.cpu import best_of
from benchmarks.harness.figures import Figures, Target, judged, rounded
from benchmarks.harness.processes import TalkingProcess, peak_resident_bytes
from benchmarks.secure.parties import (
    HOLDERS,
    THRESHOLD,
    Parties,
    Shape,
    Update,
    device_id_of,
    random_update,
    read_all,
)
from security.secret_sharing import fixed_point
from security.secret_sharing.expansion import SEED_BYTES, Expansion, derive_key
from security.secret_sharing.field import M61
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.parameter_fields import CHUNK_BYTES
from security.shared_round.terms.share_format import sharing_scheme
from updates.codec import encode_dense

DIMS: Final = (1_000, 100_000, 1_000_000, 10_000_000)
FRACTION_BITS: Final = 20
STEP_WORDS: Final = CHUNK_BYTES // M61.word_bytes
SCHEME: Final = Threshold(threshold=THRESHOLD, holders=HOLDERS)

MAX_SHARE_US: Final = {1_000: 60.0, 1_000_000: 10_000.0}
MAX_RSS_MB: Final = 500.0


def measure(repeats: int, *, dim: int) -> list[Figures]:
    """Give one row for each format."""
    return [_row(Parties.meet(), name, dim, repeats) for name in ShareFormat]


def share(share_format: ShareFormat, update: Update, seeds: Sequence[bytes]) -> None:
    """Encode an update, expand the seeds and compute what does not come from them, M61.

    Args:
        share_format: how.
        update: (d,) float32.
        seeds: as many as the format has.
    """
    sharing = sharing_scheme(share_format, SCHEME)
    expansions = [
        Expansion(
            derive_key(seed, params_sha256=bytes(32), device_id="bench", piece=piece),
            M61,
            len(update),
        )
        for piece, seed in enumerate(seeds)
    ]
    for start in range(0, len(update), STEP_WORDS):
        part = update[start : start + STEP_WORDS]
        secret = fixed_point.encode(part, fraction_bits=FRACTION_BITS, field=M61)
        sharing.explicit(M61, secret, expansions, start)


def _row(parties: Parties, name: str, dim: int, repeats: int) -> Figures:
    update = random_update(dim, seed=dim)
    params = parties.round_of(Shape(format=name, checks="norm", dim=dim, clients=100))
    share_format = ShareFormat(name)
    num_seeds = sharing_scheme(share_format, SCHEME).num_seeds
    seeds = [os.urandom(SEED_BYTES) for _ in range(num_seeds)]
    functions: dict[str, Callable[[], object]] = {
        "plain": lambda: xxhash.xxh3_128_digest(encode_dense(update)),
        "share": lambda: share(share_format, update, seeds),
        "seal": lambda: read_all(parties.seal(params, device_id_of(0), update)),
    }
    best = best_of(functions, repeats=repeats)
    plain_bytes = len(encode_dense(update))
    bundle_bytes = len(parties.seal(params, device_id_of(0), update))
    peak_mb = _peak_rss_mb(name, dim)
    targets = [Target(name="peak RSS", figure=peak_mb, limit=MAX_RSS_MB, unit="MB")]
    if dim in MAX_SHARE_US and share_format is ShareFormat.SHAMIR_SEEDED:
        share_us = 1e6 * best["share"]
        targets.append(Target(name="share", figure=share_us, limit=MAX_SHARE_US[dim], unit="us"))
    return {
        "format": name,
        "dim": dim,
        "share_ms": rounded(1e3 * best["share"]),
        "share_million_per_s": rounded(dim / best["share"] / 1e6),
        "seal_ms": rounded(1e3 * best["seal"]),
        "plain_ms": rounded(1e3 * best["plain"]),
        "seal_ratio": rounded(best["seal"] / best["plain"]),
        "wire_bytes": bundle_bytes,
        "plain_bytes": plain_bytes,
        "peak_rss_mb": rounded(peak_mb),
        **judged(*targets),
    }


def _peak_rss_mb(name: str, dim: int) -> float:
    """Peak memory of a device process that seals one update, its own vector included."""
    with TalkingProcess("benchmarks.secure.device", (name, str(dim))) as device:
        device.hear()
        return peak_resident_bytes(device.pid) / 1e6


def seal_one(share_format: str, dim: int) -> None:
    """Be the device that seals one update."""
    parties = Parties.meet()
    params = parties.round_of(Shape(format=share_format, checks="norm", dim=dim, clients=100))
    read_all(parties.seal(params, device_id_of(0), random_update(dim, seed=dim)))
    sys.stdout.write("sealed\n")
    sys.stdout.flush()
    sys.stdin.read()


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name=f"{dim:,} elements",
            full=partial(measure, dim=dim),
            quick=partial(measure, dim=dim) if dim == DIMS[0] else None,
        )
        for dim in DIMS
    ],
    repeats=5,
)

if __name__ == "__main__":
    seal_one(sys.argv[1], int(sys.argv[2]))
