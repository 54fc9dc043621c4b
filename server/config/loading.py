"""Settings, read once from TOML and the environment.

Keys are kebab-case. `FEDAGG__SECTION__KEY=value` in the environment overrides a key of a section
(`FEDAGG__STORE__URL`), for coordinators and share holders alike; the value is read as TOML, and as
a plain string where that fails or where the setting is a text. An unknown key is an error that
names the nearest valid one.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from server.config.holder_config import HolderConfig
from server.config.process_contradictions import holder_problems, server_problems
from server.config.reading import Override, read_section, setting_paths
from server.config.section import Section
from server.config.server_config import ServerConfig

ENVIRONMENT_PREFIX: Final = "FEDAGG__"

_TOML_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?P<where>.*)\)", re.DOTALL)
_KINDS: Final[tuple[type[ServerConfig | HolderConfig], ...]] = (ServerConfig, HolderConfig)

C = TypeVar("C", bound=Section)


class ConfigError(ValueError):
    """The configuration is not valid.

    Attributes:
        problems: all that is wrong, one line each, naming the setting as the file writes it.
        settings: with a hole for each value that is wrong; None: there is nothing to go on with.
    """

    def __init__(
        self, *problems: str, settings: "ServerConfig | HolderConfig | None" = None
    ) -> None:
        self.settings = settings
        self.problems = tuple(" ".join(problem.split()) for problem in problems)
        super().__init__("; ".join(self.problems))


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read a coordinator's configuration file.

    Raises:
        ConfigError: if the file cannot be read, is no TOML, or holds a wrong key or value.
    """
    settings = load_settings(path, environment)
    if not isinstance(settings, ServerConfig):
        msg = f"{path}: is for a share holder: give it to `fedagg share-holder serve`"
        raise ConfigError(msg)
    return settings


def load_holder_config(path: Path, environment: Mapping[str, str] = os.environ) -> HolderConfig:
    """Read a share holder's configuration file.

    Raises:
        ConfigError: as for `load_config`.
    """
    settings = load_settings(path, environment)
    if not isinstance(settings, HolderConfig):
        msg = f"{path}: is for a coordinator: give it to `fedagg serve`"
        raise ConfigError(msg)
    return settings


def load_settings(
    path: Path, environment: Mapping[str, str] = os.environ
) -> ServerConfig | HolderConfig:
    """Read a configuration file of either kind; its sections tell which it is.

    Raises:
        ConfigError: as for `load_config`.
    """
    tree = _read_toml(path)
    if max(_KINDS, key=lambda kind: len(tree.keys() & _sections(kind))) is HolderConfig:
        return parse_holder_config(tree, environment)
    return parse_config(tree, environment)


def parse_config(tree: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    """Validate a tree of a coordinator's settings, environment overrides applied.

    Raises:
        ConfigError: naming every wrong key, with the nearest valid one, every wrong value, and
            every contradiction.
    """
    config, problems = _parse(ServerConfig, tree, environment)
    problems += server_problems(config)
    if problems:
        raise ConfigError(*problems, settings=config)
    return config


def parse_holder_config(tree: Mapping[str, object], environment: Mapping[str, str]) -> HolderConfig:
    """Validate a tree of a share holder's settings, environment overrides applied.

    Raises:
        ConfigError: as for `parse_config`.
    """
    config, problems = _parse(HolderConfig, tree, environment)
    problems += holder_problems(config)
    if problems:
        raise ConfigError(*problems, settings=config)
    return config


def _parse(
    kind: type[C], tree: Mapping[str, object], environment: Mapping[str, str]
) -> tuple[C, list[str]]:
    problems: list[str] = []
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()
    }
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            problems += _override(kind, merged, name, text)
    return read_section(kind, merged, problems), problems


def _override(kind: type[Section], tree: dict[str, Any], name: str, text: str) -> list[str]:
    """Put what a variable says into the tree; return what is wrong with its name."""
    path = [part.lower().replace("_", "-") for part in name[len(ENVIRONMENT_PREFIX) :].split("__")]
    if len(path) != 2 or not all(path):
        return [f"{name}: must have the form {ENVIRONMENT_PREFIX}SECTION__KEY"]
    if path[0] == "task":
        return [f"{name}: tasks are set in the file alone"]
    if path not in _paths(kind):
        # Coordinators and holders may share an environment.
        if any(path in _paths(other) for other in _KINDS):
            return []
        valid = [".".join(one) for other in _KINDS for one in _paths(other)]
        near = difflib.get_close_matches(".".join(path), valid, n=1)
        return [f"{name}: no such setting" + (f", did you mean {near[0]}?" if near else "")]
    section = tree.setdefault(path[0], {})
    if isinstance(section, dict):
        section[path[1]] = Override(variable=name, text=text)
    return []


def _paths(kind: type[Section]) -> list[list[str]]:
    """Return the section and key of every setting that the environment can override."""
    return [path.split(".") for path in setting_paths(kind) if path.count(".") == 1]


def _sections(kind: type[Section]) -> set[str]:
    return {path.partition(".")[0] for path in setting_paths(kind)}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        msg = f"{path}: line {line}: not UTF-8 text"
        raise ConfigError(msg) from error
    except RecursionError as error:
        msg = f"{path}: nested too deeply"
        raise ConfigError(msg) from error
    except ValueError as error:
        found = _TOML_PLACE.fullmatch(str(error))
        where, what = (found["where"], found["what"]) if found else ("some line", str(error))
        if where == "end of document":
            where = f"line {len(data.splitlines())}"
        msg = f"{path}: {where}: not TOML: {what[:1].lower()}{what[1:]}"
        raise ConfigError(msg) from error
