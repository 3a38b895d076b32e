"""Settings: their constraints stand on the fields that take them and are checked here.

pydantic is imported by the first check only, so that ``patchguard --help`` stays fast.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeGuard, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from patchguard.errors import PatchGuardError
from patchguard.files import printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Gt(0), Le(1)]
Proportion = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]


@dataclass
class Settings:
    """A dataclass that checks what it is made with against the types of its fields.

    Errors name a setting by ``section``, such as ``data.anomalies``, or else by the class.

    Raises:
        PatchGuardError: a value that does not fit, in one line.
    """

    prefix: ClassVar[str]

    def __init_subclass__(cls, section: str | None = None, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.prefix = f"{cls.__name__}: " if section is None else f"{section}.".lstrip(".")

    def __post_init__(self) -> None:
        for name, kind in setting_types(type(self)).items():
            if not is_settings(kind):
                check_value(self.prefix + name, getattr(self, name), kind)

    def changed(self, **changes: Any) -> Self:
        """With these settings in place of its own."""
        return replace(self, **changes)

    def require(self, met: bool, name: str, allowed: str) -> None:
        """For what depends on several settings, or is no matter of a range."""
        if not met:
            raise unfit(self.prefix + name, getattr(self, name), [allowed])


def is_settings(kind: Any) -> TypeGuard[type[Settings]]:
    """Whether a type is one of settings."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def setting_types(make: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of what a dataclass is made with, or of a callable's keyword-only arguments.

    Constraints are part of the types.
    """
    return _setting_types(make)


@cache
def _setting_types(make: Callable[..., Any]) -> dict[str, Any]:
    if is_dataclass(make):
        names = [each.name for each in fields(make) if each.init]
        hints = get_type_hints(make, include_extras=True)
        return {name: hints[name] for name in names}
    parameters = inspect.signature(make, eval_str=True).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}


def checked_settings(what: str, given: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Are there such settings, and do their values fit?

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
        check_value(f"{what}: {name}", value, types[name])


def check_value(name: str, value: Any, kind: Any) -> Any:
    """A value as a type has it; it has to fit as YAML has types: no text for a number.

    Raises:
        PatchGuardError: it does not fit; the line says what it must be.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        faults = [each for each in error.errors() if each["type"] != "none_required"]
        raise unfit(name, value, map(_told, faults)) from error


def unfit(name: str, value: Any, allowed: Iterable[str]) -> PatchGuardError:
    """The error of a setting with a value that is not allowed."""
    told = " or ".join(dict.fromkeys(allowed))
    return PatchGuardError(f"{name} is {printable(repr(value))}; it must be {told}")


_MUST_BE = {
    "bool_type": "true or false",
    "dataclass_exact_type": "a {class_name}",
    "dict_type": "a mapping (lines such as 'name: value')",
    "finite_number": "finite",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "is_instance_of": "a {class}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "sequence_str": "a list",
    "string_type": "text (in YAML with quotes)",
    "too_short": "a list of {min_length} or more",
}
"""Of pydantic's errors by type."""


def _told(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if context.get("lt") == math.inf:
        return "finite"
    return _MUST_BE[error["type"]].format(**context) if error["type"] in _MUST_BE else error["msg"]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
