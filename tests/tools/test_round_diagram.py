"""The diagram in the documentation is the table that the server obeys."""

import pytest

from server.round.state import ALLOWED
from tools.round_diagram import DOCUMENT, diagram, main, with_diagram


def test_the_documented_diagram_is_current() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_diagram(document) == document
    assert main(["--check"]) == 0


def test_every_transition_is_drawn() -> None:
    drawn = diagram()
    for phase, events in ALLOWED.items():
        for event, targets in events.items():
            for target in targets:
                assert f"{phase.value} --> {target.value}: {event.__name__}" in drawn


def test_a_document_without_the_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="no block"):
        with_diagram("# Architecture\n")
