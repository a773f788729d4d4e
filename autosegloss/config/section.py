"""The base of the sections of a configuration: frozen, strict pydantic models with documented fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import PydanticCustomError

Keys: TypeAlias = tuple[str, ...]
"""The keys that lead to a value, from the outermost."""
Positive: TypeAlias = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A mapping with a fixed set of keys; the docstring below a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def late_mistakes(self) -> Iterator[tuple[Keys, ValidationError]]:
        """Errors that only the whole section shows, each with the keys of the subsection."""
        return iter(())


class NamedSection(Section):
    """A section with a name and further keys: the options of the named object, which checks them itself."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys besides `name`, for use as keyword arguments."""
        return dict(self.__pydantic_extra__)


def misplaced(problem: str, *keys: str) -> PydanticCustomError:
    """An error of a section, reported at one of its keys."""
    return PydanticCustomError("misplaced", "{problem}", {"problem": problem, "at": keys})


def is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether the type of a field is a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def section_of_names(annotation: object) -> type[BaseModel] | None:
    """The section type of the values of a mapping, or None if the type of a field is not such a mapping."""
    if get_origin(annotation) is dict and is_section(inner := get_args(annotation)[1]):
        return inner
    return None


def merged(section: type[BaseModel], values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a section with changes merged key by key; a new name drops the options of the old one."""
    if issubclass(section, NamedSection) and changes.get("name", values["name"]) != values["name"]:
        return changes
    result = values | changes
    for key in changes.keys() & section.model_fields.keys():
        if is_section(inner := section.model_fields[key].annotation):
            result[key] = merged(inner, values[key], changes[key])
    return result
