"""Run `make demo` as on a machine that never saw this project: `python -m tools.clean_demo`.

Each run has a clone of what is committed, an environment of its own, and pip as it comes: neither
settings files nor PIP_ variables. Behind a proxy that opens TLS, REQUESTS_CA_BUNDLE tells pip whom
to trust.

Name versions of Python to run it on, such as 3.12; otherwise it is the one that runs this.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
DEMO: Final = "--rounds 3"

# Settings of pip, of the interpreter, and of the make that started this.
_SETTINGS: Final = re.compile(r"PIP_.*|PYTHON.*|PYENV_VERSION|VIRTUAL_ENV|(GNU)?MAKE.*|MFLAGS|ARGS")
_ASK: Final = "import sys; print(*sys.version_info[:2], sep='.'); print(sys.executable)"
_ASK_S: Final = 60.0
_SETUP_ENDS: Final = "/fedagg demo"  # the command, as make echoes it
_FIRST_ROUND: Final = "[ROUND 1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python that starts.

    Attributes:
        version: such as 3.12.
        program: what runs, whatever led to it.
    """

    version: str
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run went, in seconds of the clock; None where it did not come so far.

    Attributes:
        status: of make.
        setup_s: until the demo was started.
        first_round_s: from there until its first round had ended.
        demo_s: from there until it had ended.
    """

    status: int
    setup_s: float | None
    first_round_s: float | None
    demo_s: float | None

    @property
    def is_good(self) -> bool:
        """Whether it ended well, after a round."""
        return self.status == 0 and self.first_round_s is not None

    def __str__(self) -> str:
        times = {
            "set-up": self.setup_s,
            "first round": self.first_round_s,
            "whole demo": self.demo_s,
        }
        known = [
            f"{name} {seconds:.1f} s" for name, seconds in times.items() if seconds is not None
        ]
        return ", ".join([*([] if self.is_good else [f"FAILED ({self.status})"]), *known])


def main(versions: Sequence[str]) -> int:
    """Run on each version that is here; return 0 if there was one, and none failed."""
    found = [find(version, os.environ) for version in versions] or [_ask(sys.executable)]
    missing = [version for version, one in zip(versions, found, strict=False) if one is None]
    outcomes = {one.version: run_demo(one) for one in found if one is not None}
    for version, outcome in outcomes.items():
        _say(f"Python {version}: {outcome}")
    for version in missing:
        _say(f"Python {version}: not found")
    return int(not outcomes or not all(outcome.is_good for outcome in outcomes.values()))


def find(version: str, environment: Mapping[str, str]) -> Interpreter | None:
    """Give the first Python of a version that starts.

    A version manager's shim on the PATH starts only what somebody chose; all that it has installed
    lies in folders of its own.
    """
    name = f"python{version}"
    folders = [Path(folder) for folder in environment.get("PATH", "").split(os.pathsep) if folder]
    managed = Path(environment.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    programs = [folder / name for folder in folders]
    programs += sorted(managed.glob(f"{version}.*/bin/{name}"), reverse=True)
    for program in programs:
        found = _ask(str(program)) if program.is_file() else None
        if found is not None and found.version == version:
            return found
    return None


def run_demo(interpreter: Interpreter) -> Outcome:
    """Clone, set up and run the demo there, on the clone's own code; nothing of it is kept."""
    with tempfile.TemporaryDirectory(prefix="fedagg-clone-") as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        make = ["make", "--no-print-directory", f"PYTHON={interpreter.program}"]
        started = time.monotonic()
        with subprocess.Popen(
            [*make, "demo", f"ARGS={DEMO}"],
            cwd=folder,
            env=factory_settings(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            times = _times(process.stdout or ())
        ended = time.monotonic()
    setup, first_round = times
    return Outcome(
        status=process.returncode,
        setup_s=None if setup is None else setup - started,
        first_round_s=None if setup is None or first_round is None else first_round - setup,
        demo_s=None if setup is None else ended - setup,
    )


def factory_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what somebody set for pip, Python or make."""
    kept = {name: value for name, value in environment.items() if not _SETTINGS.fullmatch(name)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHONUNBUFFERED": "1"}


def _times(lines: Iterable[str]) -> tuple[float | None, float | None]:
    """Pass lines on; tell when set-up and when the first round had ended."""
    setup = first_round = None
    for line in lines:
        sys.stdout.write(line)
        sys.stdout.flush()
        if setup is None and _SETUP_ENDS in line:
            setup = time.monotonic()
        elif first_round is None and line.startswith(_FIRST_ROUND):
            first_round = time.monotonic()
    return setup, first_round


def _ask(program: str) -> Interpreter | None:
    command = [program, "-c", _ASK]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=_ASK_S)
    except (OSError, subprocess.SubprocessError):
        return None
    version, _, path = done.stdout.strip().partition("\n")
    return Interpreter(version=version, program=path)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
