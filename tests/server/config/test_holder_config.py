"""The holder's configuration: the sample tells the truth, and nonsense is refused."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel

from server.config import ConfigError, HolderConfig, load_holder_config, parse_holder_config

SAMPLE: Final = Path(__file__).parents[3] / "docs/samples/share-holder.toml"
NOT_A_DEFAULT: Final = {"tls.insecure"}
MINIMAL: Final[dict[str, Any]] = {
    "holder": {
        "index": 1,
        "committee": "committee.json",
        "keys": "keys.json",
        "device-ca": "ca.pem",
        "data-dir": "data",
    },
    "tls": {"insecure": True},
}


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in model.model_fields.values():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys_of(inner, f"{prefix}{field.alias}.")
        else:
            found[f"{prefix}{field.alias}"] = field
    return found


def mentioned_in(text: str) -> set[str]:
    section, found = "", set()
    for line in text.splitlines():
        if header := re.fullmatch(r"\[([a-z]+)\]", line):
            section = header[1]
        elif key := re.match(r"(?:# )?([a-z-]+) = ", line):
            found.add(f"{section}.{key[1]}")
    return found


def test_the_sample_is_valid_and_names_every_key() -> None:
    assert load_holder_config(SAMPLE).holder.index == 1
    assert mentioned_in(SAMPLE.read_text(encoding="utf-8")) == set(keys_of(HolderConfig))


def test_the_sample_shows_the_defaults() -> None:
    tree = tomllib.loads(SAMPLE.read_text(encoding="utf-8"))
    for path, field in keys_of(HolderConfig).items():
        if field.is_required() or path in NOT_A_DEFAULT:
            continue
        section, key = path.split(".")
        default = field.default
        if isinstance(default, tuple):
            default = [each.value for each in default]
        assert tree[section].get(key) == getattr(default, "value", default), path


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("holder", "index", 8, "holder.index"),
        ("holder", "durabilty", "machine", "did you mean durability?"),
        ("policy", "min-members", 1, "policy.min-members"),
        ("listen", "grpc", "", "listen.grpc"),
    ],
)
def test_a_wrong_setting_is_told(section: str, key: str, value: object, told: str) -> None:
    tree = MINIMAL | {section: MINIMAL.get(section, {}) | {key: value}}
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_holder_config(tree, {})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_holder_config(tmp_path / "absent.toml")
