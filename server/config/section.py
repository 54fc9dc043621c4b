"""What every section of a configuration has in common: kebab-case keys, nothing unknown."""

from typing import TYPE_CHECKING, Never

from pydantic import BaseModel, ConfigDict


class UnreadableSetting(AttributeError):
    """A setting whose value is wrong was asked for: what rests on it cannot be judged."""


class Section(BaseModel):
    """A frozen section; keys are kebab-case in files, and an unknown one is refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_alias=True,
        validate_by_name=True,
    )

    if not TYPE_CHECKING:  # to a type checker every attribute would exist

        def __getattr__(self, name: str) -> Never:
            raise UnreadableSetting(name)
