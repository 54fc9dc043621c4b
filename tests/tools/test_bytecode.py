import importlib
import sys

import pytest

from tools import bytecode


def test_every_module_is_named_as_it_is_imported() -> None:
    names = list(bytecode.modules())
    assert len(names) == len(set(names))
    assert {"cli", "cli.main", "protos.fedagg.v1.errors_pb2", "server.worker"} <= set(names)
    assert not any(name.startswith(("benchmarks", "tests", "tools")) for name in names)


def test_what_an_extra_lacks_is_left_out_and_bytecode_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported: list[str] = []

    def import_module(name: str) -> None:
        imported.append(name)
        if name == "without_torch":
            raise ImportError(name)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(bytecode, "modules", lambda: ["first", "without_torch", "last"])
    monkeypatch.setattr(importlib, "import_module", import_module)
    bytecode.main()
    assert imported == ["first", "without_torch", "last"]
    assert sys.dont_write_bytecode is False
