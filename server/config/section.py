"""What every section of a configuration has in common: kebab-case keys, nothing unknown."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen section; keys are kebab-case in files, and an unknown one is refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_alias=True,
        validate_by_name=True,
    )


def explain(item: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Put one problem of a validation into words; of an unknown key, with the nearest valid one.

    Args:
        item: of `ValidationError.errors()`.
        root: the model that was validated.
    """
    where = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']}"
    valid = _valid_keys(item["loc"][:-1], root)
    near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1)
    return f"{where}: unknown key" + (f", did you mean {near[0]}?" if near else "")


def _valid_keys(location: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    model = root
    for part in location:
        for field in model.model_fields.values():
            if field.alias == part:
                # A section, or a list of sections.
                for inner in (field.annotation, *get_args(field.annotation)):
                    if isinstance(inner, type) and issubclass(inner, BaseModel):
                        model = inner
                break
    return [field.alias or "" for field in model.model_fields.values()]
