import json
from pathlib import Path
from typing import Any

import numpy as np

from security.secret_sharing import arithmetic, cnf, seeded
from security.secret_sharing.expansion import Expansion, derive_key
from security.secret_sharing.field import MersenneField, Words, field_of
from security.secret_sharing.threshold import Threshold
from tests.looped import looped
from tests.security.secret_sharing import oracle

PUBLISHED = Path(__file__).parents[2] / "vectors" / "secret_sharing.json"
CASES = json.loads(PUBLISHED.read_text())


def named(case: dict[str, Any]) -> str:
    return f"{case['bits']} bits, {case['threshold']} of {case['holders']}, {case['length']} words"


def summary(words: Words, field: MersenneField) -> dict[str, object]:
    return oracle.summary([int(word) for word in words], field.bits)


def key(piece: int, number: int) -> bytes:
    return derive_key(
        oracle.seeds_of(number + 1)[number],
        params_sha256=oracle.PARAMS_SHA256,
        device_id=oracle.DEVICE_ID,
        piece=piece,
    )


def test_the_published_vectors_are_those_of_the_definitions() -> None:
    assert oracle.vectors() == CASES


@looped("case", CASES, ids=named)
def test_seeded_shares_are_the_published_ones(case: dict[str, Any]) -> None:
    field = field_of(case["bits"])
    scheme = Threshold(case["threshold"], case["holders"])
    secret = np.array(oracle.secret_of(field.bits, case["length"]), dtype=np.uint64)
    assert summary(secret, field) == case["secret"]
    assert key(1, 0).hex() == case["key_of_piece_1"]
    expansions = [
        Expansion(key(holder, holder - 1), field, len(secret))
        for holder in range(1, scheme.threshold)
    ]
    chosen = [expansion.words(0, len(secret)) for expansion in expansions]
    explicit = np.empty((scheme.holders - scheme.threshold + 1, len(secret)), field.wire_dtype)
    seeded.share_chunk(scheme, secret, expansions, 0, explicit)
    shares = [*chosen, *(row.astype(np.uint64) for row in explicit)]
    published = list(case["shamir_seeded"].values())
    assert [summary(words, field) for words in shares] == published


@looped("case", CASES, ids=named)
def test_pieces_and_what_they_convert_to_are_the_published_ones(case: dict[str, Any]) -> None:
    field = field_of(case["bits"])
    scheme = Threshold(case["threshold"], case["holders"])
    secret = np.array(oracle.secret_of(field.bits, case["length"]), dtype=np.uint64)
    pieces = [
        Expansion(key(i, i), field, len(secret)).words(0, len(secret))
        for i in range(scheme.num_pieces - 1)
    ]
    pieces.append(cnf.explicit_piece(field, secret, pieces))
    assert [summary(piece, field) for piece in pieces] == case["cnf_pieces"]
    unscale = field.inverse(cnf.conversion_scale(scheme))
    for holder in scheme.points:
        held = {i: pieces[i] for i in scheme.pieces_of(holder)}
        converted = cnf.convert(field, scheme, holder, held)
        share = arithmetic.multiply(field, converted, np.full_like(converted, unscale))
        assert summary(share, field) == case["cnf_converted"][str(holder)]
