"""From the tree of a file to sections: every wrong key and value is told, in words of our own.

A setting is named as the file writes it, lists counted from 1: `task[1].aggregation.rule`. A value
that is wrong leaves a hole in its section: whoever asks for it gets `UnreadableSetting`, so that
all other settings can still be judged.
"""

import difflib
import json
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import annotated_types as at
from pydantic import ConfigDict, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from server.config.section import Section

S = TypeVar("S", bound=Section)

_MAX_SHOWN: Final = 100
_LENGTHS: Final = frozenset({"string_too_short", "string_too_long", "too_short", "too_long"})
_CREDENTIALS: Final = re.compile(r"//[^/@]*@")
_TEXT: Final = (str, SecretStr, Path)
_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple: "a list",
    dict: "a table",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What a variable of the environment says of one setting."""

    variable: str
    text: str


def read_section(
    kind: type[S], tree: Mapping[str, object], problems: list[str], where: str = ""
) -> S:
    """Read a section and those in it.

    Args:
        kind: of the section.
        tree: what the file says; an `Override` is what the environment says instead.
        problems: each one found is appended, as one line.
        where: the section's name, with a dot after it; "" of the whole file.

    Returns:
        The section, with a hole for each setting that is wrong.
    """
    fields = {str(field.alias): name for name, field in kind.model_fields.items()}
    problems += [f"{where}{key}: {_unknown(key, kind)}" for key in tree if key not in fields]
    values: dict[str, Any] = {}
    for alias, name in fields.items():
        field = kind.model_fields[name]
        if alias in tree:
            try:
                values[name] = _read(kind, name, tree[alias], problems, f"{where}{alias}")
            except _Wrong as wrong:
                problems.extend(wrong.problems)
        elif field.is_required():
            problems.append(f"{where}{alias}: must be given")
    section = kind.model_construct(**values)
    for alias, name in fields.items():
        is_hole = alias in tree or kind.model_fields[name].is_required()
        if is_hole and name not in values:
            section.__dict__.pop(name, None)
    return section


class _Wrong(Exception):
    """A value that cannot be taken."""

    def __init__(self, *problems: str) -> None:
        super().__init__()
        self.problems = problems


def _read(kind: type[Section], name: str, value: object, problems: list[str], where: str) -> object:
    annotation = kind.model_fields[name].annotation
    inner = section_kind(annotation)
    if inner is None:
        return _read_value(kind, name, value, where)
    if get_origin(annotation) is not tuple:
        if not isinstance(value, Mapping):
            raise _Wrong(f"{where}: must be a section, written as [{where}]")
        return read_section(inner, value, problems, f"{where}.")
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _Wrong(f"{where}: must be a list of sections, each written as [[{where}]]")
    return tuple(
        read_section(inner, item, problems, f"{where}[{number}].")
        for number, item in enumerate(value, start=1)
    )


def section_kind(annotation: object) -> type[Section] | None:
    """Return the section that a setting is, or is a list of; None: it is a value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _read_value(kind: type[Section], name: str, value: object, where: str) -> object:
    adapter = _adapter(kind, name)
    if isinstance(value, Override):
        where = f"{value.variable}: {where}"
        value = _value_of(value, kind.model_fields[name])
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        field = kind.model_fields[name]
        raise _Wrong(*(_told(item, field, where) for item in error.errors())) from None


def _value_of(override: Override, field: FieldInfo) -> object:
    """Read as TOML what is TOML, and as text what is none, or where only text makes sense."""
    try:
        value: object = tomllib.loads(f"value = {override.text}")["value"]
    except tomllib.TOMLDecodeError:
        return override.text
    is_text = any(isinstance(kind, type) and issubclass(kind, _TEXT) for kind in _kinds(field))
    return override.text if is_text and not isinstance(value, str) else value


@cache
def _adapter(kind: type[Section], name: str) -> TypeAdapter[Any]:
    field = kind.model_fields[name]
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _told(error: Mapping[str, Any], field: FieldInfo, where: str) -> str:
    """Put one refusal into words: the rule, then the value."""
    for part in error["loc"]:
        where += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    if error["type"] == "value_error":
        rule = str(error["ctx"]["error"])
    elif error["type"] in _LENGTHS:
        rule = f"must have {_lengths(field)} characters"
    else:
        rule = _rule(field, is_item=bool(error["loc"]))
    is_secret = SecretStr in _kinds(field)
    return f"{where}: {rule}" + ("" if is_secret else f", got {_shown(error['input'])}")


def _rule(field: FieldInfo, *, is_item: bool) -> str:
    kinds = _kinds(field)
    if is_item:  # of a list or a table
        kinds = [kind for kind in get_args(field.annotation) if kind not in {..., str}] or [str]
    choices = [
        str(choice.value if isinstance(choice, Enum) else choice)
        for kind in kinds
        for choice in (get_args(kind) if get_origin(kind) is Literal else _members(kind))
    ]
    if choices:
        return f"must be one of {', '.join(choices)}"
    kind = kinds[0]
    noun = _KINDS.get(get_origin(kind) or kind, "text")
    return f"must be {noun}" + ("" if is_item else _range(field))


def _range(field: FieldInfo) -> str:
    told = []
    for constraint in field.metadata:
        match constraint:
            case at.Ge(ge=bound):
                told.append(f"at least {bound}")
            case at.Gt(gt=bound):
                told.append(f"above {bound}")
            case at.Le(le=bound):
                told.append(f"at most {bound}")
            case at.Lt(lt=bound):
                told.append(f"below {bound}")
            case _:
                pass
    return f", {' and '.join(told)}" if told else ""


def _lengths(field: FieldInfo) -> str:
    least = next((one.min_length for one in field.metadata if isinstance(one, at.MinLen)), None)
    most = next((one.max_length for one in field.metadata if isinstance(one, at.MaxLen)), None)
    told = [f"at least {least}"] if least is not None else []
    return " and ".join([*told, f"at most {most}"] if most is not None else told)


def _kinds(field: FieldInfo) -> list[Any]:
    """Return the types a value may have, None left out."""
    annotation: Any = field.annotation
    if get_origin(annotation) in {types.UnionType, Union}:
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _members(kind: object) -> list[Enum]:
    return list(kind) if isinstance(kind, type) and issubclass(kind, Enum) else []


def _shown(value: object) -> str:
    """Write a value much as the file does."""
    match value:
        case str():
            text = json.dumps(_CREDENTIALS.sub("//...@", value), ensure_ascii=False)
        case bool():
            text = str(value).lower()
        case Mapping():
            text = "a table"
        case list():
            text = "a list"
        case _:
            text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _unknown(key: str, kind: type[Section]) -> str:
    valid = [str(field.alias) for field in kind.model_fields.values()]
    near = difflib.get_close_matches(key.replace("_", "-").lower(), valid, n=1)
    if near:
        return f"unknown key, did you mean {near[0]}?"
    homes = [path for path in setting_paths(kind) if path.rpartition(".")[2] == key]
    return "unknown key" + (f", did you mean {homes[0]}?" if homes else "")


def setting_paths(kind: type[Section]) -> list[str]:
    """Name every setting of a section and of those in it, as a file does: `store.url`."""
    paths = []
    for field in kind.model_fields.values():
        inner = section_kind(field.annotation)
        paths += (
            [str(field.alias)]
            if inner is None
            else [f"{field.alias}.{path}" for path in setting_paths(inner)]
        )
    return paths
