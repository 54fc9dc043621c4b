"""The sample configurations are valid, and the full one is complete and tells the truth."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.config import ServerConfig, load_config
from tests.looped import looped

ROOT: Final = Path(__file__).parents[1]
# A share holder's sample has another tree; tests/server/config/test_holder_config.py reads it.
SAMPLES: Final = sorted(
    path for path in (ROOT / "docs/samples").glob("*.toml") if path.name != "share-holder.toml"
)
FULL: Final = ROOT / "docs/samples/server.toml"

# What a sample has to set to be valid at all, or is told in a way of its own.
NOT_A_DEFAULT: Final = {"tls.insecure", "task.name", "task.initial-model"}


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the configuration with its path."""
    for field in model.model_fields.values():
        path = f"{prefix}{field.alias}"
        inner = next(
            (
                kind
                for kind in (field.annotation, *get_args(field.annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ),
            None,
        )
        if inner is None:
            yield path, field
        else:
            yield from _sections(inner, f"{path}.")


def _mentioned(text: str) -> set[str]:
    """Paths of all keys in a TOML text, also of those that are commented out, and of tables."""
    section, found = "", set()
    for line in text.splitlines():
        if header := re.fullmatch(r"\[\[?([a-z.-]+)\]\]?", line):
            section = header[1]
            found.add(section)
        elif key := re.match(r"(?:# )?([a-z0-9-]+) = ", line):
            found.add(f"{section}.{key[1]}")
    return found


def _value(tree: Any, path: str) -> object:
    for part in path.split("."):
        if isinstance(tree, list):
            (tree,) = tree
        if part not in tree:
            return None
        tree = tree[part]
    return tree


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_is_valid_apart_from_the_secrets_it_leaves_to_the_environment(path: Path) -> None:
    assert load_config(path, {"FEDAGG__ADMIN__TOKEN": "sixteen-or-more-characters"}).tasks


def test_the_full_sample_is_valid_as_it_stands() -> None:
    assert load_config(FULL, {}).tls.insecure


def test_the_full_sample_names_every_key_and_no_other() -> None:
    mentioned = _mentioned(FULL.read_text(encoding="utf-8"))
    keys = {path for path, _ in _sections(ServerConfig)}
    assert keys - mentioned == set()
    assert {name for name in mentioned - keys if "." in name} <= {
        path.rpartition(".")[0] for path in keys
    }


KEYS: Final = dict(_sections(ServerConfig))


@looped("path", KEYS)
def test_the_full_sample_shows_the_defaults(path: str) -> None:
    shown = _value(tomllib.loads(FULL.read_text(encoding="utf-8")), path)
    if path in NOT_A_DEFAULT:
        assert shown is not None
        return
    default = KEYS[path].get_default(call_default_factory=True, validated_data={})
    if isinstance(default, Path):
        default = str(default)
    if isinstance(default, tuple):
        default = list(default)
    assert shown == getattr(default, "value", default)
