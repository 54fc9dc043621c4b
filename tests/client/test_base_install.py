"""The SDK needs no more than the base install: neither torch nor flwr nor the server's packages."""

import subprocess
import sys

BASE_INSTALL = {"google", "grpc", "numpy", "opentelemetry", "safetensors", "xxhash", "zstandard"}
# What those bring along; grpc also tries its own add-ons and does without them.
BROUGHT_ALONG = {
    "cython_runtime",
    "grpc_health",
    "grpc_reflection",
    "grpc_tools",
    "importlib_metadata",
    "typing_extensions",
    "zipp",
}
OWN = {"client", "privacy", "protos", "security", "updates"}

PROGRAM = """
import sys
before = set(sys.modules)
import client
import client.trainers.flower
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_importing_the_client_loads_the_base_install_only() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    loaded = {name for name in run.stdout.split() if not name.startswith("_")}
    unexpected = loaded - set(sys.stdlib_module_names) - BASE_INSTALL - BROUGHT_ALONG - OWN
    assert "grpc" in loaded
    assert unexpected == set()
