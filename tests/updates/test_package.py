import subprocess
import sys
from pathlib import Path

import pytest

UPDATES = Path(__file__).parents[2] / "updates"


@pytest.mark.slow
def test_model_files_and_codecs_load_no_rule_and_no_compiler() -> None:
    modules = [path.stem for path in UPDATES.glob("*.py") if path.stem != "__init__"]
    imports = "\n".join(f"import updates.{module}" for module in sorted(modules))
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{imports}\n{listing}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert set(done.stdout.split()).isdisjoint({"aggregators", "numba", "scipy", "torch"})
