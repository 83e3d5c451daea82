"""Typed events: facts that are published on application topics, how they are written and read, and their ids.

An `Event` is a pydantic model bound to a topic; a `ProtobufEvent` binds a Protobuf message class to one. Either has an
`EventType`, which says what a topic carries and reads its messages; `workers` declares who wants them. `ctx.publish`
collects `Publication`s; whoever runs the handler hands them over for good before its changes are acknowledged.
Nothing is registered: `discovery` collects what modules declare.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, cast, runtime_checkable

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypeVar, Unpack

from cdc_reactor.declarations import check_options
from cdc_reactor.errors import DecodeError, DefinitionError, ReactorError
from cdc_reactor.messages import NO_ATTRIBUTES, Message
from cdc_reactor.validation import told

#: The attribute that names an event for ever, however often it is delivered or published again.
EVENT_ID = "event_id"
#: Attributes that carry a trace on, as W3C and Google's clients name them.
#: https://www.w3.org/TR/trace-context/#traceparent-header
TRACE_ATTRIBUTES = ("traceparent", "tracestate", "googclient_traceparent", "googclient_tracestate")

# https://cloud.google.com/pubsub/docs/create-topic#resource_names
_TOPIC = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-._~+%]{2,254}")
# Set by the service on messages of a topic with a schema.
# https://cloud.google.com/pubsub/docs/schemas#schema-message-attributes
_SCHEMA_ENCODING = "googclient_schemaencoding"


class Event(BaseModel):
    """A fact, named in the past: `class UserRenamed(Event, topic="user.renamed.v1"): …`.

    `key="user_id"` names the field whose value is the ordering key, where whoever publishes gives none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")

    topic: ClassVar[str] = ""
    key_field: ClassVar[str] = ""

    def __init_subclass__(
        cls, *, topic: str | None = None, key: str | None = None, **kwargs: Unpack[ConfigDict]
    ) -> None:
        check_options(cls.__name__, kwargs, ("topic", "key", *ConfigDict.__annotations__))
        check_options(cls.__name__, kwargs, ("topic", "key", *ConfigDict.__annotations__))
        # `topic` and `key` are read by __pydantic_init_subclass__, once the fields are known.
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, topic: str | None = None, key: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if topic is not None:
            check_topic(cls.__name__, topic)
            cls.topic = topic
        if key is not None:
            if key not in cls.model_fields:
                raise DefinitionError(
                    f"{cls.__name__}: key={key!r} is none of its fields; it has {', '.join(cls.model_fields)}"
                )
            cls.key_field = key


def check_topic(label: str, topic: object) -> None:
    """Raise DefinitionError where this is no name that a topic may have."""
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise DefinitionError(
            f"{label}: topic={topic!r} is no legal Pub/Sub name: a letter, then 2 to 254 letters, digits or "
            "any of -._~+%, not beginning with goog"
        )


@runtime_checkable
class ProtobufMessage(Protocol):
    """What every class that protoc generated can do."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's own name
        """Write it as bytes."""


E = TypeVar("E", default=Any)
M = TypeVar("M", bound=ProtobufMessage, default=Any)


class Encoding(StrEnum):
    """How the data of a topic's messages are written."""

    JSON = "json"
    PROTOBUF = "protobuf"
    PROTOBUF_JSON = "protobuf-json"
    #: By a function of the team's.
    CUSTOM = "custom"
    #: Not read at all.
    RAW = "raw"


class ProtobufEvent(Generic[M]):
    """A Protobuf message class bound to a topic: `candidate_matched = ProtobufEvent(MatchedCandidate, topic="…")`.

    Call it to make of a message what `ctx.publish` takes: `ctx.publish(candidate_matched(match))`. `encoding` is how it
    is published, "protobuf" for binary or "protobuf-json"; what is received is read as the topic's schema says, else
    so. `key` names the field whose value is the ordering key.
    """

    __slots__ = ("encoding", "key_field", "model", "topic")

    def __init__(self, model: type[M], *, topic: str, encoding: str = Encoding.PROTOBUF, key: str = "") -> None:
        if not is_protobuf(model):
            raise DefinitionError(f"ProtobufEvent takes a Protobuf message class, not {model!r}")
        label = f"ProtobufEvent({model.__name__})"
        check_topic(label, topic)
        if encoding not in (Encoding.PROTOBUF, Encoding.PROTOBUF_JSON):
            raise DefinitionError(f'{label}: encoding={encoding!r} must be "protobuf" or "protobuf-json"')
        fields = [field.name for field in cast("Any", model).DESCRIPTOR.fields]
        if key and key not in fields:
            raise DefinitionError(f"{label}: key={key!r} is none of its fields; it has {', '.join(fields)}")
        self.model = model
        self.topic = topic
        self.encoding = Encoding(encoding)
        self.key_field = key

    def __call__(self, message: M) -> ProtobufFact[M]:
        """Bind a message to the topic, to be published.

        Raises:
            TypeError: it is a message of another class.
        """
        if not isinstance(message, self.model):
            raise TypeError(f"{self.topic} takes a {self.model.__name__}, not a {type(message).__name__}")
        return ProtobufFact(self, message)

    def __repr__(self) -> str:
        return f"ProtobufEvent({self.model.__name__}, topic={self.topic!r})"


class ProtobufFact(Struct, Generic[M], frozen=True):
    """A Protobuf message on its way to its topic; made by calling a ProtobufEvent."""

    type: ProtobufEvent[M]
    message: M

    @property
    def topic(self) -> str:
        """The topic that it goes to."""
        return self.type.topic


#: What can be published.
Publishable: TypeAlias = Event | ProtobufFact[Any]


def is_protobuf(model: object) -> bool:
    """Tell whether this is a class that protoc generated."""
    return isinstance(model, type) and hasattr(model, "DESCRIPTOR") and hasattr(model, "SerializeToString")


# ── what a topic carries ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class EventType(Generic[E]):
    """What a topic carries, and how its messages are read. Two are equal where they mean the same."""

    topic: str
    model: type[E]
    encoding: Encoding
    parse: Callable[[Message], E] | None = None
    key_field: str = ""

    @property
    def name(self) -> str:
        """What the class is called."""
        return self.model.__name__

    def read(self, message: Message) -> E:
        """Read a message.

        Raises:
            DecodeError: it is not what the topic carries; the text names the fields and holds none of their values.
        """
        if self.encoding is Encoding.JSON:
            return self._read_json(message.data)
        if self.parse is not None:
            return self._read_by(self.parse, message)
        if self.encoding is Encoding.RAW:
            return cast("E", message)
        # Imported with the first Protobuf class and not before: it takes 35 ms.
        from cdc_reactor.protobufs import read

        written = message.attributes.get(_SCHEMA_ENCODING, "JSON" if self.encoding is Encoding.PROTOBUF_JSON else "")
        return cast("E", read(self.model, message.data, is_json=written == "JSON", topic=self.topic))

    def _read_json(self, data: bytes) -> E:
        try:
            return cast("Any", self.model).model_validate_json(data)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise DecodeError(f"{self.name} ({self.topic}): {told(error, cast('Any', self.model))}") from None
        except Exception as error:
            # A validator of the team's own; its text may hold what was sent.
            raise DecodeError(f"{self.name} ({self.topic}): a validator raised {type(error).__name__}") from error

    def _read_by(self, parse: Callable[[Message], E], message: Message) -> E:
        name = getattr(parse, "__name__", type(parse).__name__)
        try:
            event = parse(message)
        except ReactorError:
            raise
        except ValidationError as error:
            raise DecodeError(f"{self.name} ({self.topic}): {told(error)}") from error
        except Exception as error:
            # Its text may hold what was sent.
            raise DecodeError(f"{self.name} ({self.topic}): {name} raised {type(error).__name__}") from error
        if not isinstance(event, self.model):
            raise DecodeError(f"{self.name} ({self.topic}): {name} returned a {type(event).__name__}")
        return event


def event_type(
    source: object, *, topic: str = "", parse: Callable[[Message], Any] | None = None, label: str = ""
) -> EventType[Any]:
    """Say what an Event class, a ProtobufEvent, a Protobuf class or any other class is to a topic.

    Raises:
        DefinitionError: a topic or a parser is missing, or one is given that does not belong there.
    """
    label = label or getattr(source, "__name__", repr(source))
    _check_parser(label, source, parse)
    if isinstance(source, ProtobufEvent):
        _refuse_topic(label, topic, source.topic)
        return EventType(source.topic, source.model, source.encoding, parse, source.key_field)
    if not isinstance(source, type):
        raise DefinitionError(f"{label}: {source!r} is no event type: give an Event class, a ProtobufEvent or a class")
    if issubclass(source, Event):
        if not source.topic:
            raise DefinitionError(f'{label}: {source.__name__} has no topic: class {source.__name__}(Event, topic="…")')
        _refuse_topic(label, topic, source.topic)
        encoding = Encoding.JSON if parse is None else Encoding.CUSTOM
        return EventType(source.topic, source, encoding, parse, source.key_field)
    if not topic:
        raise DefinitionError(f'{label}: {source.__name__} is bound to no topic; add topic="…"')
    check_topic(label, topic)
    if source is Message:
        if parse is not None:
            raise DefinitionError(
                f"{label}: Message is the untouched message; with parse, name the class that it makes"
            )
        return EventType(topic, source, Encoding.RAW)
    if is_protobuf(source):
        return EventType(topic, source, Encoding.PROTOBUF, parse)
    if parse is None:
        raise DefinitionError(
            f"{label}: nobody knows how to read {source.__name__}; make it an Event, or add parse=, a function from "
            f"the Message to a {source.__name__}"
        )
    return EventType(topic, source, Encoding.CUSTOM, parse)


def _check_parser(label: str, source: object, parse: object) -> None:
    if parse is None:
        return
    if not callable(parse):
        raise DefinitionError(f"{label}: parse={parse!r} must be a function that is given the Message")
    if inspect.iscoroutinefunction(parse):
        raise DefinitionError(f"{label}: parse must be a plain def; what must be waited for belongs into the worker")
    if source is Message:
        raise DefinitionError(f"{label}: Message is the untouched message; with parse, name the class that it makes")


def _refuse_topic(label: str, given: str, own: str) -> None:
    if given and given != own:
        raise DefinitionError(f"{label}: topic={given!r}, but its event type has a topic of its own, {own}")


# ── publishing ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Publication(Struct, frozen=True, eq=False):
    """An event that a handler wants published, under an ordering key or none. Equal where event and key are.

    `data` is the event as it is written, where that is known already; `topic` goes before the event's own.
    """

    event: Publishable
    key: str = ""
    attributes: Mapping[str, str] = NO_ATTRIBUTES
    data: bytes | None = None
    topic: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Publication):
            return NotImplemented
        return (self.event, self.key, self.topic) == (other.event, other.key, other.topic)

    def __hash__(self) -> int:
        return hash((self.event, self.key))


class EncodedEvent(Struct, frozen=True):
    """An event of another process: its class need not exist in this one. Its data are JSON, or what Protobuf writes."""

    topic: str
    key: str
    data: bytes
    attributes: Mapping[str, str] = NO_ATTRIBUTES
    is_json: bool = True

    @classmethod
    def of(cls, publication: Publication) -> EncodedEvent:
        """Encode a publication."""
        data = encode(publication.event) if publication.data is None else publication.data
        # A plain dict: it travels between processes.
        attributes = dict(publication.attributes)
        topic = publication.topic or publication.event.topic
        return cls(topic, publication.key, data, attributes, is_json(publication.event))


def encode(event: Publishable) -> bytes:
    """Encode an event as its subscribers read it; ValueError where it holds what its encoding cannot."""
    if isinstance(event, ProtobufFact):
        from cdc_reactor.protobufs import write

        return write(event.message, is_json=event.type.encoding is Encoding.PROTOBUF_JSON)
    # Pydantic's own writer knows integers of any length and bytes that are no text; orjson knows neither.
    # By alias, as it is read.
    return event.__pydantic_serializer__.to_json(event, by_alias=True)


def is_json(event: Publishable) -> bool:
    """Tell whether an event is written as JSON."""
    return not isinstance(event, ProtobufFact) or event.type.encoding is Encoding.PROTOBUF_JSON


def key_of(event: Publishable) -> str:
    """Return the ordering key that the event's own key field gives it; empty where it has none."""
    fact, field = (event.message, event.type.key_field) if isinstance(event, ProtobufFact) else (event, event.key_field)
    return str(getattr(fact, field)) if field else ""


def name_of(event: object) -> str:
    """Name an event's class, for people."""
    return type(event.message).__name__ if isinstance(event, ProtobufFact) else type(event).__name__


def derived_id(parts: Sequence[str], data: bytes, repeated: int = 0) -> str:
    """Give an event the same id however often its cause is handled again.

    `parts` are who publishes, what it was handling, topic and key; `repeated` counts equal events of one cause from 0.
    32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (*parts, str(repeated)):
        digest.update(f"{len(part)}:{part}".encode())
    digest.update(data)
    return digest.hexdigest()


def trace_of(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return what carries a message's trace on."""
    return {name: attributes[name] for name in TRACE_ATTRIBUTES if name in attributes} if attributes else {}


def declared_topics() -> list[str]:
    """Name the topics of all event classes that have been imported, in alphabetical order."""
    return sorted({cls.topic for cls in _below(Event) if cls.topic})


def _below(cls: type[Event]) -> Iterator[type[Event]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)
