"""Settings, read once from TOML and the environment.

Keys are kebab-case. `FEDAGG__SECTION__KEY=value` in the environment overrides a key of a section
(`FEDAGG__STORE__URL`); the value is read as TOML, and as a plain string where that fails. An
unknown key is an error that names the nearest valid one.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from server.config.section import explain
from server.config.server_config import ServerConfig

ENVIRONMENT_PREFIX: Final = "FEDAGG__"


class ConfigError(ValueError):
    """The configuration is not valid; the message lists every problem."""


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read a configuration file.

    Raises:
        ConfigError: if the file cannot be read, is no TOML, or holds a wrong key or value.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    return parse_config(tree, environment)


def parse_config(tree: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    """Validate a tree of settings, environment overrides applied.

    Raises:
        ConfigError: naming every wrong key, with the nearest valid one, and every wrong value.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()
    }
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(merged, name, text)
    try:
        return ServerConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(explain(item, ServerConfig) for item in error.errors())
        ) from error


def _override(tree: dict[str, Any], name: str, text: str) -> None:
    path = [part.lower().replace("_", "-") for part in name[len(ENVIRONMENT_PREFIX) :].split("__")]
    if len(path) != 2 or not all(path):
        msg = f"{name} must have the form {ENVIRONMENT_PREFIX}SECTION__KEY"
        raise ConfigError(msg)
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tree.setdefault(path[0], {})[path[1]] = value
