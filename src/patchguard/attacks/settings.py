"""Settings: their constraints stand on the fields that take them and are checked here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from patchguard.errors import PatchGuardError
from patchguard.files import printable

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(kw_only=True)
class Settings:
    """What it is made with is checked against the types of its fields.

    Raises:
        PatchGuardError: a value that does not fit, in one line.
    """

    def __post_init__(self) -> None:
        types = setting_types(type(self))
        checked_settings(type(self).__name__, {name: getattr(self, name) for name in types}, types)


def setting_types(make: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of what a dataclass is made with, or of a callable's keyword-only arguments.

    Constraints are part of the types.
    """
    if is_dataclass(make):
        names = [each.name for each in fields(make) if each.init]
        hints = get_type_hints(make, include_extras=True)
        return {name: hints[name] for name in names}
    parameters = inspect.signature(make, eval_str=True).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}


def checked_settings(what: str, given: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Are there such settings, and do their values fit, as YAML has types: no text for a number?

    Args:
        what: whose settings they are, as an error names it.
        given: values by name.
        types: those that exist, with their constraints.

    Raises:
        PatchGuardError: they do not, in one line.
    """
    for name, value in given.items():
        if name not in types:
            known = ", ".join(sorted(types)) or "none"
            raise PatchGuardError(f"{what}: no setting {name!r}; known: {known}")
        try:
            _adapter(types[name]).validate_python(value)
        except ValidationError as error:
            found = dict.fromkeys(_uncapitalised(each["msg"]) for each in error.errors())
            raise PatchGuardError(
                f"{what}: {name} is {printable(repr(value))}: {' or '.join(found)}"
            ) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _uncapitalised(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
