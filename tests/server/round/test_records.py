"""What a published version takes over from its round and from the version before."""

from dataclasses import replace

import pytest

from server.round.records import published_version
from server.round.state import CandidateModel
from tests.contract.round_bench import MODEL, new_round

CANDIDATE = CandidateModel(sha256="ab", size_bytes=9, state_sha256="cd", excluded=0)


@pytest.mark.parametrize(
    ("moved", "before", "expected"),
    [(None, None, None), (None, 0.5, 0.5), (0.25, 0.5, 0.25), (0.25, None, 0.25)],
)
def test_a_clipping_norm_stays_until_a_round_moves_it(
    moved: float | None, before: float | None, expected: float | None
) -> None:
    candidate = replace(CANDIDATE, next_clipping_norm=moved)
    published = replace(new_round(1), candidate=candidate)
    base = replace(MODEL, clipping_norm=before)
    version = published_version(published, version=2, base=base)
    assert version.clipping_norm == expected
    assert (version.sha256, version.state_sha256, version.dim) == ("ab", "cd", MODEL.dim)
