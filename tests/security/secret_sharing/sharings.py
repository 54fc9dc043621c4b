"""The three ways to share a vector, under one signature."""

from collections.abc import Callable

import numpy as np

from security.secret_sharing import cnf, seeded
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold
from tests.security.secret_sharing import classic

RandomBytes = Callable[[int], bytes]
Sharing = Callable[[MersenneField, Threshold, Words, RandomBytes], dict[int, Words]]


def from_seed(seed: int) -> RandomBytes:
    return np.random.default_rng(seed).bytes


def by_coefficients(
    field: MersenneField, scheme: Threshold, secret: Words, random_bytes: RandomBytes
) -> dict[int, Words]:
    return dict(enumerate(classic.share(field, scheme, secret, random_bytes), start=1))


def by_seeds(
    field: MersenneField, scheme: Threshold, secret: Words, random_bytes: RandomBytes
) -> dict[int, Words]:
    chosen = [
        expand_words(random_bytes(32), field, len(secret)) for _ in range(scheme.threshold - 1)
    ]
    explicit = seeded.explicit_shares(field, scheme, secret, chosen)
    return dict(enumerate([*chosen, *explicit], start=1))


def by_pieces(
    field: MersenneField, scheme: Threshold, secret: Words, random_bytes: RandomBytes
) -> dict[int, Words]:
    """Share by pieces and convert: the shares are of `scale_of` times the secret."""
    pieces = [
        expand_words(random_bytes(32), field, len(secret)) for _ in range(scheme.num_pieces - 1)
    ]
    pieces.append(cnf.explicit_piece(field, secret, pieces))
    return {
        holder: cnf.convert(field, scheme, holder, {i: pieces[i] for i in scheme.pieces_of(holder)})
        for holder in scheme.points
    }


SHARINGS: dict[str, Sharing] = {
    "classic": by_coefficients,
    "shamir-seeded": by_seeds,
    "cnf-seeded": by_pieces,
}


def scale_of(name: str, scheme: Threshold) -> int:
    return cnf.conversion_scale(scheme) if name == "cnf-seeded" else 1
