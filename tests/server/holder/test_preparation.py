"""What a share holder's files cannot be is told at once, before it touches its folder."""

from pathlib import Path

import pytest

from cli.holder.committee_files import HOLDER_CONFIG, CommitteePlan, holder_name, write_committee
from server.config import ConfigError, HolderConfig, load_holder_config
from server.holder.app import open_holder
from server.holder.preparation import prepare_holder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    addresses = [f"127.0.0.1:{port}" for port in range(1, 4)]
    plan = CommitteePlan(threshold=2, addresses=addresses, listen=["127.0.0.1:0"] * 3)
    write_committee(plan, tmp_path, [])
    return tmp_path


def config(folder: Path, **environment: str) -> HolderConfig:
    path = folder / holder_name(1) / HOLDER_CONFIG
    return load_holder_config(path, {f"FEDAGG__{key}": text for key, text in environment.items()})


def problems(folder: Path, **environment: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        prepare_holder(config(folder, **environment))
    return refused.value.problems


def test_files_that_belong_together_are_opened(folder: Path) -> None:
    prepared = prepare_holder(config(folder))
    assert (prepared.me.index, len(prepared.me.committee.holders), prepared.tls) == (1, 3, None)


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("HOLDER__INDEX", "2", "holder.keys: "),
        ("HOLDER__INDEX", "4", "holder.index: 4 must be in 1..3"),
        ("HOLDER__KEYS", "{}/ca.pem", "holder.keys: {}/ca.pem: a holder's secrets must be"),
        ("HOLDER__KEYS", "{}/absent", "holder.keys: {}/absent: No such file"),
        ("HOLDER__COMMITTEE", "{}/ca.pem", "holder.committee: {}/ca.pem: a committee must be"),
        ("HOLDER__DEVICE_CA", "{}/committee.json", "holder.device-ca: {}/committee.json: "),
        ("POLICY__MIN_THRESHOLD", "3", "policy.min-threshold: 3 must not exceed the 2 of"),
        ("HOLDER__DATA_DIR", "/proc/data", "holder.data-dir: /proc/data: cannot write to /proc"),
        ("LISTEN__HTTP", "192.0.2.1:80", "listen.http: 192.0.2.1:80: Cannot assign"),
    ],
)
def test_what_cannot_be_used_is_told_once(folder: Path, key: str, text: str, told: str) -> None:
    (problem,) = problems(folder, **{key: text.format(folder)})
    assert problem.startswith(told.format(folder))


def test_a_folder_of_another_holder_is_told_and_not_touched(folder: Path) -> None:
    theirs = folder / holder_name(1) / "data"
    open_holder(config(folder)).storage.close()
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}
    path = folder / holder_name(2) / HOLDER_CONFIG
    other = load_holder_config(path, {"FEDAGG__HOLDER__DATA_DIR": str(theirs)})
    with pytest.raises(ConfigError, match=r"holder\.data-dir: .* belongs to holder 1 of committee"):
        prepare_holder(other)
    assert {path: path.stat().st_mtime_ns for path in theirs.rglob("*")} == before


def test_all_problems_are_told_at_once(folder: Path) -> None:
    told = problems(
        folder, HOLDER__KEYS="absent", HOLDER__DEVICE_CA="absent", POLICY__MIN_THRESHOLD="3"
    )
    assert [problem.partition(": ")[0] for problem in told] == [
        "policy.min-threshold",
        "holder.keys",
        "holder.device-ca",
    ]
