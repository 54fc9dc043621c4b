"""Regenerate the code that protos/ holds, or check that it is current.

python -m tools.protos           rewrite the generated files
python -m tools.protos --check   exit 1 and name every file that is not what protoc writes
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PLUGINS: Final = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
GENERATED: Final = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(root: Path, out: Path) -> None:
    """Compile every .proto file under `root`/protos into `out`.

    Raises:
        subprocess.CalledProcessError: if protoc refuses a file; its message is on stderr.
    """
    # The plugins lie beside the interpreter; they are found there even when PATH does not name it.
    scripts = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
        *(f"--plugin={name}={scripts / name}" for name in PLUGINS),
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")),
        *(path.relative_to(root).as_posix() for path in sorted(root.glob("protos/**/*.proto"))),
    ]
    subprocess.run(command, cwd=root, check=True)


def drift(committed: Path, fresh: Path) -> list[str]:
    """Name the generated files that are missing, stale or left over, relative to the root."""
    old, new = _generated(committed), _generated(fresh)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _generated(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for pattern in GENERATED
        for path in root.glob(f"protos/**/{pattern}")
    }


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        generate(ROOT, ROOT)
        return 0
    with TemporaryDirectory() as fresh:
        generate(ROOT, Path(fresh))
        stale = drift(ROOT, Path(fresh))
    for name in stale:
        sys.stderr.write(f"{name} is not what its .proto file generates: run `make protos`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
