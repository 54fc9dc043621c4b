from pathlib import Path

from tools.protos import ROOT, drift, generate


def test_committed_code_is_what_protoc_generates(tmp_path: Path) -> None:
    generate(ROOT, tmp_path)
    assert list(tmp_path.glob("protos/**/*_pb2.py"))
    assert drift(ROOT, tmp_path) == []


def test_a_changed_field_is_drift(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for root, field in ((old, "uint32 round = 1;"), (new, "uint64 round = 1;")):
        (root / "protos").mkdir(parents=True)
        (root / "protos" / "sample.proto").write_text(
            f'syntax = "proto3"; package sample; message Round {{ {field} }}'
        )
        generate(root, root)
    assert "protos/sample_pb2.py" in drift(old, new)
    assert drift(old, old) == []


def test_missing_and_left_over_files_are_drift(tmp_path: Path) -> None:
    committed, fresh = tmp_path / "committed", tmp_path / "fresh"
    for root, name in ((committed, "removed_pb2.py"), (fresh, "added_pb2.py")):
        (root / "protos").mkdir(parents=True)
        (root / "protos" / name).write_bytes(b"")
        (root / "protos" / "same_pb2_grpc.pyi").write_bytes(b"same")
    assert drift(committed, fresh) == ["protos/added_pb2.py", "protos/removed_pb2.py"]
