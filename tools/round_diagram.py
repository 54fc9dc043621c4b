"""Write the round's state diagram into docs/Architecture.md, from the table the server obeys.

`python -m tools.round_diagram` rewrites the block; `--check` says whether it is current.
"""

import sys
from pathlib import Path
from typing import Final

from server.round.state import ALLOWED, Phase

DOCUMENT: Final = Path(__file__).resolve().parent.parent / "docs" / "Architecture.md"
BEGIN: Final = "<!-- round diagram: begin (python -m tools.round_diagram) -->\n"
END: Final = "<!-- round diagram: end -->\n"


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.SELECTING.value}"]
    for phase, events in ALLOWED.items():
        lines += [
            f"    {phase.value} --> {target.value}: {event.__name__}"
            for event, targets in events.items()
            for target in sorted(targets, key=lambda target: target.value)
        ]
        if not events:
            lines.append(f"    {phase.value} --> [*]")
    body = "\n".join(lines)
    return f"```mermaid\n{body}\n```\n"


def with_diagram(document: str) -> str:
    """Return `document` with its block replaced.

    Raises:
        ValueError: if the document has no block.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = "the document has no block for the round diagram"
        raise ValueError(msg)
    return before + BEGIN + diagram() + END + after


def main(arguments: list[str]) -> int:
    """Rewrite the document, or with --check only compare; return the exit status."""
    document = DOCUMENT.read_text(encoding="utf-8")
    current = with_diagram(document)
    if "--check" in arguments:
        return int(document != current)
    DOCUMENT.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
