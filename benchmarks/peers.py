"""The interpreter that has the libraries which are only compared with; `make peers` makes it."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
