"""What a device pays to share an update, beside what it pays to encode a plain one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from benchmarks.processes import ROOT, Usage
from benchmarks.secure.cpu import best_of
from benchmarks.secure.figures import Figures, Target, judged, rounded
from benchmarks.secure.parties import (
    HOLDERS,
    THRESHOLD,
    Parties,
    Shape,
    Update,
    device_id_of,
    random_update,
)
from benchmarks.secure.sealing_child import read_all
from security.secret_sharing import fixed_point
from security.secret_sharing.expansion import SEED_BYTES, Expansion, derive_key
from security.secret_sharing.field import M61
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.parameter_fields import CHUNK_BYTES
from security.shared_round.terms.share_format import sharing_scheme
from updates.codec import encode_dense

FRACTION_BITS: Final = 20
STEP_WORDS: Final = CHUNK_BYTES // M61.word_bytes
SCHEME: Final = Threshold(threshold=THRESHOLD, holders=HOLDERS)

MAX_SHARE_US: Final = {1_000: 60.0, 1_000_000: 10_000.0}
MAX_RSS_MB: Final = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured: the sizes, and how often each."""

    dims: Sequence[int]
    repeats: int


def measure(settings: Settings) -> list[Figures]:
    """One row for each size and format."""
    parties = Parties.meet()
    return [
        _row(parties, name, dim, settings.repeats) for dim in settings.dims for name in ShareFormat
    ]


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
    command = (sys.executable, "-m", "benchmarks.secure.sealing_child", name, str(dim))
    child = subprocess.Popen(  # noqa: S603  # our own command
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        if child.stdout is None or child.stdout.readline() != b"sealed\n":
            msg = f"the device that seals {dim} elements ended early"
            raise RuntimeError(msg)
        return Usage.of(child.pid).peak_rss_bytes / 1e6
