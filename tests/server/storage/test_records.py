"""What is written of a submission, and what older releases wrote."""

import pytest

from server.round.ports import Submission
from server.storage.records import dump_facts, load_contribution


def submission(within: bool | None) -> Submission:
    return Submission(
        task="t",
        round_number=3,
        device_id="d1",
        submission_id="s1",
        model_version=9,
        num_samples=10,
        payload_bytes=20,
        digest=bytes(16),
        loss_before=0.5,
        loss_after=None,
        inline_payload=b"x",
        within_clipping_norm=within,
    )


@pytest.mark.parametrize("within", [None, False, True])
def test_a_contribution_is_read_as_it_was_written(within: bool | None) -> None:
    line = f"s1|{bytes(16).hex()}|{dump_facts(submission(within))}|77"
    found = load_contribution(b"d1", line.encode())
    assert found.within_clipping_norm is within
    assert (found.model_version, found.num_samples, found.accepted_at_ms) == (9, 10, 77)
    assert (found.loss_before, found.loss_after, found.inline) == (0.5, None, True)


@pytest.mark.parametrize(("later", "version"), [("", 0), ("|9", 9)])
def test_lines_of_older_releases_are_read(later: str, version: int) -> None:
    line = f"s1|{bytes(16).hex()}|10|20|1|0.5|{later}|77"
    found = load_contribution(b"d1", line.encode())
    assert (found.model_version, found.within_clipping_norm) == (version, None)
    assert found.accepted_at_ms == 77
