"""What the tests have a template load and fork."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from security.shared_round.keys.holder_keys import HolderSecrets

PRELOADED: list[str] = []


def preload(arguments: Sequence[str]) -> bool:
    """Draw from every source, so that a fork would go on with the same if it could."""
    PRELOADED.extend(arguments)
    drawn()
    match arguments:
        case ["compile", path]:
            with Path(path).open("a") as file:
                file.write(f"compiled in process {os.getpid()}\n")
            return True
    return False


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["facts", path]:
            Path(path).write_text(json.dumps(facts()))
        case ["drawn", path]:
            Path(path).write_text(json.dumps(drawn()))
        case ["wait", fd]:
            os.write(int(fd), b"\n")
            signal.pause()
        case ["wait-with-child", fd]:
            with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
                os.write(int(fd), f"{child.pid}\n".encode())
                signal.pause()
        case ["return", status]:
            return int(status)
        case ["exit", status]:
            raise SystemExit(status)
        case ["fail", message]:
            raise RuntimeError(message)
        case _:
            raise ValueError(arguments)
    return 0


def facts() -> dict[str, object]:
    return {
        "preloaded": PRELOADED,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "files": {
            entry.name: str(entry.readlink())
            for entry in Path("/proc/self/fd").iterdir()
            if entry.exists()
        },
        "arguments": sys.argv,
        "set": os.environ.get("SET"),
        "name": Path("/proc/self/comm").read_text().strip(),
        "command": Path("/proc/self/cmdline").read_text().rstrip("\0"),
    }


def drawn() -> dict[str, str]:
    return {
        "system": os.urandom(16).hex(),
        "secrets": secrets.token_hex(16),
        "random": str(random.random()),
        "numpy": str(np.random.random()),  # the global one is what is asked about
        "generator": str(np.random.default_rng().random()),
        "uuid": str(uuid.uuid4()),
        "key": Ed25519PrivateKey.generate().private_bytes_raw().hex(),
        "holder": HolderSecrets.generate(secrets.token_bytes).to_json().hex(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
