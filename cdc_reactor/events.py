"""Typed events: facts that handlers publish on application topics.

An `Event` is a pydantic model bound to a topic. `ctx.publish` collects `Publication`s; whoever runs the handler hands
them over for good before its changes are acknowledged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import Struct
from pydantic import BaseModel, ConfigDict
from typing_extensions import Unpack

from cdc_reactor.errors import DefinitionError

# https://cloud.google.com/pubsub/docs/create-topic#resource_names
_TOPIC = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-._~+%]{2,254}")


class Event(BaseModel):
    """A fact, named in the past: `class UserRenamed(Event, topic="user.renamed.v1"): …`."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64")

    topic: ClassVar[str] = ""

    def __init_subclass__(cls, *, topic: str | None = None, **kwargs: Unpack[ConfigDict]) -> None:
        # `topic` is read by __pydantic_init_subclass__, once the fields are known.
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, topic: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if topic is None:
            return
        if not _TOPIC.fullmatch(topic):
            raise DefinitionError(
                f"{cls.__name__}: topic={topic!r} is no legal Pub/Sub name: a letter, then 2 to 254 letters, digits or "
                "any of -._~+%, not beginning with goog"
            )
        cls.topic = topic


class Publication(Struct, frozen=True):
    """An event that a handler wants published, under an ordering key or none."""

    event: Event
    key: str = ""


class EncodedEvent(Struct, frozen=True):
    """An event of another process: its class need not exist in this one."""

    topic: str
    key: str
    data: bytes

    @classmethod
    def of(cls, publication: Publication) -> EncodedEvent:
        """Encode a publication."""
        return cls(publication.event.topic, publication.key, encode(publication.event))


def encode(event: Event) -> bytes:
    """Encode an event as the JSON that its subscribers read; ValueError where it holds what JSON cannot."""
    # Pydantic's own writer knows integers of any length and bytes that are no text; orjson knows neither.
    return event.__pydantic_serializer__.to_json(event)


def declared_topics() -> list[str]:
    """Name the topics of all event classes that have been imported, in alphabetical order."""
    return sorted({cls.topic for cls in _below(Event) if cls.topic})


def _below(cls: type[Event]) -> Iterator[type[Event]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)
