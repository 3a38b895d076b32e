"""A function's signature, docstring and settings as the options of a command."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, ArgumentParser, _ActionsContainer
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from docstring_parser import Docstring, parse_from_object

from patchguard.config import Loader, from_plain
from patchguard.constraints import Settings, check_value, is_settings, setting_types
from patchguard.errors import PatchGuardError

Bases = Mapping[type[Settings], Callable[[str | None], Settings]]
"""How settings are without the options that change one of them each, by the file or name given."""


class Parser(ArgumentParser):
    """A parser that takes no abbreviations and says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises :class:`PatchGuardError`."""
        raise PatchGuardError(f"{' '.join(message.split())} (see {self.prog} --help)")


class CommandParser(Parser):
    """What a verb takes, from its signature; the help is in its docstring and its settings'.

    Parameters without a default are positionals, the others options, those that are called back
    and the reporter neither. Parameters made of settings are a file and an option for each setting.

    Args:
        prog: name of the command, the program's before it.
        verb: the function.
        told_by: whose docstring says what the parameters are.
        bases: of parameters made of settings.
    """

    def __init__(
        self,
        prog: str,
        verb: Callable[..., Any],
        told_by: Callable[..., Any],
        bases: Bases,
    ) -> None:
        own, told = parse_from_object(verb), _told(parse_from_object(told_by))
        super().__init__(prog=prog, description=_plain(own.description))
        self.bases = bases
        self.sections: dict[str, type[Settings]] = {}
        self.flags: dict[str, bool] = {}
        required = [prog]
        for name, kind, default in _parameters(verb):
            section = next(filter(is_settings, _members(kind)), None)
            if default is inspect.Parameter.empty:
                words = name.upper()
                several = _takes_several(kind)
                required.append(f"{words} [{words} ...]" if several else words)
                self.add_argument(
                    name, metavar=words, nargs="+" if several else None, help=told[name]
                )
            elif section is None:
                self._add_option(self, name, kind, default, told[name])
            else:
                self.sections[name] = section
                self.add_argument(
                    f"--{name}", dest=f"{name}.", metavar="FILE", default=SUPPRESS, help=told[name]
                )
                self._add_section(name, section)
        self.usage = " ".join([*required, "[options]"])

    def _add_section(self, prefix: str, section: type[Settings]) -> None:
        docstring = parse_from_object(section)
        told, kinds = _told(docstring), setting_types(section)
        group = self.add_argument_group(_plain(docstring.short_description).removesuffix("."))
        for each in fields(section):
            name, kind = f"{prefix}.{each.name}", kinds[each.name]
            if is_settings(kind):
                self._add_section(name, kind)
                continue
            default = each.default if each.default_factory is MISSING else each.default_factory()
            self._add_option(group, name, kind, default, told[each.name])

    def _add_option(
        self, group: _ActionsContainer, name: str, kind: Any, default: Any, told: str
    ) -> None:
        option = f"--{_dashed(name)}"
        self.flags[option] = kind is bool
        group.add_argument(
            option,
            dest=name,
            type=partial(read_word, option, kind),
            metavar=_metavar(kind),
            default=SUPPRESS,
            help=told if default is None else f"{told} (default: {_shown(default)})",
        )

    def settings(self, words: Sequence[str]) -> dict[str, Any]:
        """What the verb is called with; what is not given has the verb's own default.

        Raises:
            PatchGuardError: a word that it does not take.
        """
        found: dict[str, Any] = {}
        for name, value in vars(self.parse_intermixed_args(list(self._spelled(words)))).items():
            *path, last = name.split(".")
            branch = found
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = value
        for name in self.sections.keys() & found.keys():
            kind, file = self.sections[name], found[name].pop("", None)
            found[name] = from_plain(kind, found[name], self.bases[kind](file))
        return found

    def _spelled(self, words: Sequence[str]) -> Iterator[str]:
        """Options with dashes; flags without a value get one."""
        options = True
        for word, after in zip(words, [*words, ""][1:], strict=True):
            options &= word != "--"
            name, equals, value = word.partition("=")
            option = _dashed(name)
            if not options or option not in self.flags:
                yield word
            elif self.flags[option] and not equals and after.lower() not in ("true", "false"):
                yield f"{option}=true"
            else:
                yield f"{option}{equals}{value}"


REPORTER = "reporter"
"""The parameter that a command fills itself."""


def reports(function: Callable[..., Any]) -> bool:
    """Whether a verb says how it goes on."""
    return REPORTER in inspect.signature(function).parameters


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names, types and defaults of what a user gives."""
    for each in inspect.signature(function).parameters.values():
        if (each.name != REPORTER and not callable(each.default)) or each.default is each.empty:
            yield each.name, eval(each.annotation, function.__globals__), each.default


def read_word(option: str, kind: Any, word: str) -> Any:
    """The value of a type that a word stands for: its text, or what YAML makes of it.

    Several have commas between them, with or without brackets around.

    Raises:
        PatchGuardError: there is no such value.
    """
    if word == "null" and NoneType in _members(kind):
        return None
    readings: list[Any] = [word, _loaded(word)]
    if _takes_several(kind):
        parts = [part for each in word.strip("[] ").split(",") if (part := each.strip(" '\""))]
        lists = [parts, [_loaded(part) for part in parts]]
        readings = lists if "," in word or word[:1] in ("", "[") else readings + lists
    *others, last = readings
    for each in others:
        with suppress(PatchGuardError):
            return check_value(option, each, kind)
    return check_value(option, last, kind)


def _loaded(word: str) -> Any:
    try:
        return yaml.load(word, Loader)
    except yaml.YAMLError:
        return word


def _members(kind: Any) -> list[Any]:
    """The alternatives of a type, without their constraints."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for each in get_args(kind) for member in _members(each)]
    return [kind]


def _takes_several(kind: Any) -> bool:
    return any(get_origin(each) in (list, Sequence) for each in _members(kind))


_METAVARS = {bool: "[true|false]", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _metavar(kind: Any) -> str:
    words: list[str] = []
    members = _members(kind)
    for each in members:
        if get_origin(each) is Literal:
            words += get_args(each)
        elif get_origin(each) in (list, Sequence):
            words.append(f"{_metavar(get_args(each)[0])},...")
        elif each is not NoneType and not (each is str and Path in members):
            words.append(_METAVARS.get(each, "MAPPING"))
    return "|".join(word for word in words if f"{word},..." not in words)


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return f"[{','.join(map(str, default))}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _told(docstring: Docstring) -> dict[str, str]:
    """What a docstring says of each parameter."""
    return {each.arg_name: _plain(each.description) for each in docstring.params}


def _plain(text: str | None) -> str:
    """For a terminal: without markup, in one line; argparse takes % for a placeholder."""
    plain = re.sub(r":\w+:`~?(.+?)`|``", r"\1", text or "")
    return " ".join(plain.split()).replace("%", "%%")


def _dashed(name: str) -> str:
    return name.replace("_", "-")
