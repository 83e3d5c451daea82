"""A value of a type, and how Python writes it: for the tests that `cdc-reactor new` writes.

Pure. Values are made up, never taken from captured messages, which may be somebody's personal data.
"""

from __future__ import annotations

import re
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from keyword import iskeyword
from typing import Any
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, EmailStr, ValidationError

from cdc_reactor.source_text import quote


class NoSample(Exception):
    """Raised when nobody can guess a value of a type."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value, the text that makes it, and the modules of the names in that text; a call's arguments once more."""

    value: Any
    text: str
    homes: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


_NOON = Sample(
    datetime(2026, 11, 23, 12, tzinfo=UTC),
    "datetime(2026, 11, 23, 12, tzinfo=UTC)",
    {"UTC": "datetime", "datetime": "datetime"},
)
_OF: dict[Any, Sample] = {
    Any: Sample("a", '"a"'),
    object: Sample("a", '"a"'),
    None: Sample(None, "None"),
    types.NoneType: Sample(None, "None"),
    bool: Sample(value=True, text="True"),
    int: Sample(1, "1"),
    float: Sample(1.5, "1.5"),
    str: Sample("a", '"a"'),
    bytes: Sample(b"a", 'b"a"'),
    dict: Sample({"a": 1}, '{"a": 1}'),
    list: Sample([1], "[1]"),
    UUID: Sample(UUID(int=1), "UUID(int=1)", {"UUID": "uuid"}),
    Decimal: Sample(Decimal(1), "Decimal(1)", {"Decimal": "decimal"}),
    date: Sample(date(2026, 11, 23), "date(2026, 11, 23)", {"date": "datetime"}),
    time: Sample(time(14, 15), "time(14, 15)", {"time": "datetime"}),
    timedelta: Sample(timedelta(minutes=1), "timedelta(minutes=1)", {"timedelta": "datetime"}),
    datetime: _NOON,
    AwareDatetime: _NOON,
    EmailStr: Sample("a@example.org", '"a@example.org"'),
}
# Linters take text given under such a name for a real password, but not inside a dict.
# https://docs.astral.sh/ruff/rules/hardcoded-password-func-arg/
_SECRET = re.compile(r"(^|_)(pas+wo?r?d|pass(phrase)?|pwd|token|secrete?)($|_)", re.IGNORECASE)
_LISTS = (list, abc.Sequence, abc.Iterable, abc.Collection, abc.MutableSequence)
_SETS = {set: "{%s}", abc.Set: "{%s}", frozenset: "frozenset({%s})"}


def sample(annotation: Any) -> Sample:
    """Make a value of a type.

    Raises:
        NoSample: it is a type of which nobody can guess a value.
    """
    if _is_hashable(annotation) and annotation in _OF:
        return _OF[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None:
        return _generic(origin, arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum) and len(annotation):
        member = next(iter(annotation))
        return Sample(member, f"{annotation.__name__}.{member.name}", _home_of(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sample_model(annotation)
    raise NoSample(str(annotation))


def sample_model(model: type[BaseModel]) -> Sample:
    """Make a value of a model, with its required fields only.

    Raises:
        NoSample: one of them is of a type, or under a constraint, that nobody can guess a value for.
    """
    required = {
        _given_as(name, info): sample(info.annotation)
        for name, info in model.model_fields.items()
        if info.is_required()
    }
    try:
        value = model.model_validate({name: each.value for name, each in required.items()})
    except ValidationError as error:
        raise NoSample(model.__name__) from error
    return construct(model.__name__, required, _home_of(model), value)


def construct(name: str, arguments: Mapping[str, Sample], homes: Mapping[str, str], value: Any = None) -> Sample:
    """Write a call with these keyword arguments; those that cannot be named go in as a dict."""
    plain = [f"{key}={each.text}" for key, each in arguments.items() if _is_name(key)]
    rest = ", ".join(f"{quote(key)}: {each.text}" for key, each in arguments.items() if not _is_name(key))
    written = (*plain, *([f"**{{{rest}}}"] if rest else []))
    needed = _merged([Sample(None, "", homes), *arguments.values()])
    return Sample(value, f"{name}({', '.join(written)})", needed, written)


def _is_name(key: str) -> bool:
    return key.isidentifier() and not iskeyword(key) and not _SECRET.search(key)


def _given_as(name: str, info: Any) -> str:
    """Return what a field is called where its model is made."""
    alias = info.validation_alias
    if alias is not None and not isinstance(alias, str):
        raise NoSample(name)
    return alias or name


def _generic(origin: Any, arguments: tuple[Any, ...]) -> Sample:
    if origin in (typing.Union, types.UnionType):
        return _first_of(arguments)
    if origin is typing.Annotated:
        return sample(arguments[0])
    if origin is typing.Literal and isinstance(arguments[0], str | int):
        value = arguments[0]
        return Sample(value, quote(value) if isinstance(value, str) else repr(value))
    return _collection(origin, arguments)


def _collection(origin: Any, arguments: tuple[Any, ...]) -> Sample:
    if origin in (dict, abc.Mapping, abc.MutableMapping):
        return _gathered([sample(each) for each in arguments], "{%s: %s}", lambda key, value: {key: value})
    if origin is tuple:
        members = [sample(each) for each in arguments if each is not Ellipsis]
        return _gathered(members, f"({', '.join(['%s'] * len(members))}{',' * (len(members) == 1)})", lambda *v: v)
    if origin in _LISTS:
        return _gathered([sample(arguments[0])], "[%s]", lambda value: [value])
    if origin in _SETS:
        return _gathered([sample(arguments[0])], _SETS[origin], lambda value: frozenset({value}))
    raise NoSample(str(origin))


def _gathered(members: list[Sample], form: str, make: Callable[..., Any]) -> Sample:
    text = form % tuple(member.text for member in members)
    return Sample(make(*(member.value for member in members)), text, _merged(members))


def _first_of(choices: tuple[Any, ...]) -> Sample:
    for choice in sorted(choices, key=lambda each: each in (None, types.NoneType)):
        try:
            return sample(choice)
        except NoSample:
            continue
    raise NoSample(" | ".join(map(str, choices)))


def _merged(samples: list[Sample]) -> dict[str, str]:
    homes: dict[str, str] = {}
    for each in samples:
        for name, home in each.homes.items():
            if homes.setdefault(name, home) != home:
                raise NoSample(f"two things are named {name}")
    return homes


def _home_of(cls: type) -> dict[str, str]:
    if "." in cls.__qualname__:
        raise NoSample(f"{cls.__qualname__} cannot be imported by its name")
    return {cls.__name__: cls.__module__}


def _is_hashable(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:
        return False
    return True
