"""Settings as YAML gives them, checked against the annotations of what takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from patchguard.errors import PatchGuardError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping",
}


def keyword_types(make: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of the keyword-only parameters of a callable."""
    parameters = inspect.signature(make, eval_str=True).parameters.values()
    return {item.name: item.annotation for item in parameters if item.kind is item.KEYWORD_ONLY}


def check_type(what: str, value: object, kind: Any) -> None:
    """Is a value of that type, as YAML has types?

    Raises:
        PatchGuardError: it is not.
    """
    if not _fits(value, kind):
        raise PatchGuardError(f"{what} is {value!r}; it must be {_told(kind)}")


def _fits(value: object, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is Sequence:
        (element,) = get_args(kind)
        return isinstance(value, list | tuple) and all(_fits(each, element) for each in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _told(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_told(each) for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"a list, each of it {_told(*get_args(kind))}"
    return _WORDS[kind]
