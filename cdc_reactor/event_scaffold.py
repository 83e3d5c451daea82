"""The text of a new event: its name from its topic, its fields from what was typed or from one message, its class.

Pure: nothing is read or written here. `cli_new` writes the files; `worker_scaffold` writes who reacts to it. What is
generated passes ruff and mypy strict as it stands.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from types import GenericAlias
from typing import Any
from uuid import UUID

from pydantic import AwareDatetime

from cdc_reactor.errors import DefinitionError, UsageError
from cdc_reactor.events import Event, check_topic
from cdc_reactor.sample_values import Sample, construct, sample
from cdc_reactor.source_text import call, docstring, identifiers, join, numbered, quote, words, write_imports

#: Longer names would not fit into the lines of what is generated.
MAX_NAME = 60

# What a field's type may be called on the command line: what is written, what it is, and where it comes from.
_TYPES: Mapping[str, tuple[str, Any, str]] = {
    "int": ("int", int, ""),
    "str": ("str", str, ""),
    "float": ("float", float, ""),
    "bool": ("bool", bool, ""),
    "bytes": ("bytes", bytes, ""),
    "UUID": ("UUID", UUID, "uuid"),
    "uuid": ("UUID", UUID, "uuid"),
    # An instant on the wire knows its time zone.
    "datetime": ("AwareDatetime", AwareDatetime, "pydantic"),
    "date": ("date", date, "datetime"),
    "time": ("time", time, "datetime"),
    "Decimal": ("Decimal", Decimal, "decimal"),
    "decimal": ("Decimal", Decimal, "decimal"),
    "Any": ("Any", Any, "typing"),
}
_HOME_OF = {written: home for written, _, home in _TYPES.values() if home} | {
    "Event": "cdc_reactor",
    "Field": "pydantic",
}
# Names that the generated modules use otherwise.
_TAKEN = frozenset(
    (*_HOME_OF, "Context", "Message", "Notification", "Worker", "Run", "Callable", "None", "True", "False")
)
_VERSION = re.compile(r"v([1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class EventField:
    """A field of an event: what it is called here and (`json_name`) in the message, how its type is written."""

    name: str
    annotation: str
    type: Any
    is_optional: bool = False
    json_name: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be declared; `key` names the field that gives the ordering key, if any."""

    topic: str
    fields: tuple[EventField, ...]
    key: str = ""

    @property
    def name(self) -> str:
        """What its class is called."""
        return event_name(self.topic)


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_new_topic(topic: str) -> None:
    """Raise UsageError where Pub/Sub has no such topic, or what is written would not fit into a line."""
    try:
        check_topic("TOPIC", topic)
    except DefinitionError as error:
        raise UsageError(str(error)) from None
    if len(topic) > MAX_NAME:
        raise UsageError(f"TOPIC: {topic} has more than {MAX_NAME} characters; declare its event by hand")


def topic_words(topic: str) -> str:
    """Write a topic as words with underscores: `post.upvoted.v1` → `post_upvoted`, `.v2` → `post_upvoted_v2`.

    The first version goes without saying; later ones stand beside it for as long as both are published.
    """
    parts = [words(part) for part in re.split(r"[.\-_~+%]+", topic)]
    versions = [part for part in parts if _VERSION.fullmatch(part)]
    rest = [part for part in parts if part and part not in versions]
    later = [version for version in versions if version != "v1"]
    return "_".join([*(rest or ["event"]), *later])


def event_name(topic: str) -> str:
    """Name the class of a topic's events: `post.upvoted.v1` → `PostUpvoted`, `post.upvoted.v2` → `PostUpvotedV2`."""
    name = "".join(part.capitalize() for part in topic_words(topic).split("_"))
    # pytest takes a class Test… for tests.
    is_taken = name in _TAKEN or hasattr(builtins, name) or name.startswith("Test")
    name = f"{name}Event" if is_taken and not name.startswith("Test") else f"Event{name}" if is_taken else name
    return f"Event{name}" if name[0].isdigit() else name


def module_name(topic: str) -> str:
    """Name the module of a topic's event."""
    name = topic_words(topic)
    return f"event_{name}" if not is_module_name(name) else name


def is_module_name(name: str) -> bool:
    """Tell whether a module of this name can be imported and is looked into by discovery."""
    is_name = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return is_name and not re.fullmatch(r"test_.*|.*_test|tests|conftest|_.*", name)


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_fields(specs: Iterable[str]) -> tuple[EventField, ...]:
    """Read fields as they are typed: `post_id:int`, `tags:list[str]`, `note:str?` for one that may be missing.

    Raises:
        UsageError: one of them cannot be read, or there are two of one name.
    """
    fields: dict[str, EventField] = {}
    for spec in specs:
        field = _read_field(spec)
        if field.name in fields:
            raise UsageError(f"--field {spec}: there are two fields {field.name}; give each a name of its own")
        fields[field.name] = field
    return tuple(fields.values())


def _read_field(spec: str) -> EventField:
    name, colon, written = (part.strip() for part in spec.partition(":"))
    if not (colon and name and written):
        raise UsageError(f"--field {spec}: a field is NAME:TYPE, as post_id:int or note:str?")
    if why := _why_no_field(name):
        raise UsageError(f"--field {spec}: {name} {why}; choose another name")
    plain = re.sub(r"(\s*\|\s*None|\?)$", "", written)
    annotation, type_ = _read_type(plain.strip(), spec)
    return EventField(name, annotation, type_, is_optional=plain != written)


def _why_no_field(name: str) -> str:
    if keyword.iskeyword(name):
        return "is a word of Python"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "is no name of a field: small letters, digits and underscores, a letter first"
    if name.startswith("model_") or hasattr(Event, name) or name in _HOME_OF:
        return "is taken by what every event has, or by a type"
    return "is too long: 60 characters at most" if len(name) > MAX_NAME else ""


def _read_type(written: str, spec: str) -> tuple[str, Any]:
    if written in _TYPES:
        annotation, type_, _ = _TYPES[written]
        return annotation, type_
    if match := re.fullmatch(r"list\[(.+)\]", written):
        annotation, type_ = _read_type(match[1].strip(), spec)
        return f"list[{annotation}]", GenericAlias(list, (type_,))
    if match := re.fullmatch(r"dict\[str,\s*(.+)\]", written):
        annotation, type_ = _read_type(match[1].strip(), spec)
        return f"dict[str, {annotation}]", GenericAlias(dict, (str, type_))
    near = get_close_matches(written, _TYPES, n=1)
    known = sorted({name for name, _, _ in _TYPES.values()} - {"AwareDatetime"} | {"datetime"}, key=str.lower)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}, list[…] and dict[str, …]"
    raise UsageError(f"--field {spec}: there is no type {written}{hint}")


def guess_fields(message: Mapping[str, Any]) -> tuple[EventField, ...]:
    """Guess the fields from one message; names that Python or the linters refuse are kept as aliases.

    What was null may be missing. None of the message's values is kept.

    Raises:
        UsageError: it has no field, or one whose name is empty, or longer than a line.
    """
    if not message:
        raise UsageError("the message has no fields; give them: --field NAME:TYPE")
    guessed: dict[str, EventField] = {}
    for json_name, value in message.items():
        if not json_name:
            raise UsageError("the message has a field without a name; declare this event by hand")
        if len(json_name) > MAX_NAME:
            raise UsageError(
                f"{json_name[:MAX_NAME]}…: a name of {len(json_name)} characters; declare this event by hand"
            )
        wanted = words(json_name)[:MAX_NAME].strip("_") or "field"
        wanted = f"field_{wanted}" if wanted[0].isdigit() else wanted
        wanted = f"{wanted}_" if _why_no_field(wanted) else wanted
        name = next(each for each in numbered(wanted) if each not in guessed)
        guessed[name] = replace(_guess(name, value), json_name="" if name == json_name else json_name)
    return tuple(guessed.values())


def _guess(name: str, value: Any) -> EventField:
    if value is None:
        return EventField(name, "Any", Any, is_optional=True, comment="it was null in the message: say what it is")
    annotation, type_ = _guess_type(value)
    return EventField(name, annotation, type_)


def _guess_type(value: Any) -> tuple[str, Any]:
    match value:
        case bool() | int() | float():
            return type(value).__name__, type(value)
        case str():
            return _guess_text(value)
        case list() if len({_guess_type(each)[0] for each in value}) == 1:
            annotation, type_ = _guess_type(value[0])
            return f"list[{annotation}]", GenericAlias(list, (type_,))
        case list():
            return "list[Any]", list[Any]
        case dict():
            return "dict[str, Any]", dict[str, Any]
        case _:
            return "Any", Any


def _guess_text(value: str) -> tuple[str, Any]:
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        return "UUID", UUID
    if re.fullmatch(r"\d{4}-\d\d-\d\d", value) and _is_iso(date, value):
        return "date", date
    if re.fullmatch(r"\d{4}-\d\d-\d\d[T ].*(Z|[+-]\d\d:?\d\d)", value) and _is_iso(datetime, value):
        return "AwareDatetime", AwareDatetime
    return "str", str


def _is_iso(kind: type[date], value: str) -> bool:
    try:
        kind.fromisoformat(value)
    except ValueError:
        return False
    return True


def check_key(key: str, fields: Sequence[EventField]) -> None:
    """Raise UsageError where an event has no such field, or one that may be missing."""
    names = [field.name for field in fields]
    if key and key not in names:
        raise UsageError(f"--key {key}: the event has no such field; it has {', '.join(names)}")
    if any(field.name == key and field.is_optional for field in fields):
        raise UsageError(
            f"--key {key}: it may be missing, and messages without it would have no order; make it required"
        )


# ── the class ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_event_module(event: NewEvent, *, first_party: Iterable[str]) -> str:
    """Write a module that declares an event."""
    return join(
        docstring(f"The event {event.topic}."),
        "",
        *write_imports(homes_of(event), first_party=frozenset(first_party)),
        "",
        "",
        *write_event(event),
    )


def homes_of(event: NewEvent) -> dict[str, str]:
    """Name what its class needs, and where each comes from."""
    used = {name for field in event.fields for name in identifiers(field.annotation)}
    used |= {"Field"} if any(field.json_name for field in event.fields) else set()
    return {name: _HOME_OF[name] for name in {*used, "Event"} if name in _HOME_OF}


def write_event(event: NewEvent) -> list[str]:
    """Write its class."""
    options = ["Event", f"topic={quote(event.topic)}"]
    options += [f"key={quote(event.key)}"] if event.key else []
    # What is published is written as it is read.
    return [
        *call(f"class {event.name}", options, ":", 0),
        docstring("Say here what has happened when this is published.", 4),
        "",
        *(line for field in event.fields for line in _write_field(field)),
    ]


def _write_field(field: EventField) -> list[str]:
    is_nullable = field.is_optional and field.annotation != "Any"
    start = f"    {field.name}: {field.annotation}{' | None' if is_nullable else ''}"
    note = f"  # {field.comment}" if field.comment else ""
    if field.json_name:
        default = ["default=None"] if field.is_optional else []
        lines = call(f"{start} = Field", [*default, f"alias={quote(field.json_name)}"], "", 4)
        return [*([f"    # {field.comment}"] if field.comment else []), *lines]
    return [f"{start}{' = None' if field.is_optional else ''}{note}"]


def sample_event(event: NewEvent, module: str) -> Sample:
    """Make one for a test, with its required fields only; `module` is where its class is."""
    required = {field.json_name or field.name: sample(field.type) for field in event.fields if not field.is_optional}
    return construct(event.name, required, {event.name: module})
