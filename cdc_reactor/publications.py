"""What is checked of an event before it is published: by a handler, by a worker or by an application.

Pure: it says what is wrong while whoever publishes can still be told, and sends nothing. Neighbours: `events` declares
and encodes, `handlers` publishes after the commit, `event_publisher` at once.
"""

from __future__ import annotations

from cdc_reactor.events import EncodedEvent, Event, ProtobufFact, Publishable, encode, is_protobuf, key_of, name_of

#: What Pub/Sub takes of one message and of its ordering key, less what wraps the message in its request.
#: https://cloud.google.com/pubsub/quotas#resource_limits
MAX_EVENT_BYTES = 10_000_000 - 1_000
MAX_KEY_BYTES = 1_024


def write(event: Publishable, *, who: str, key: str = "", topic: str = "") -> EncodedEvent:
    """Write an event for its topic, under `key` or what its own key field says; `who` publishes, for the errors.

    A `topic` goes before the event's own. The result has no attributes.

    Raises:
        TypeError: this is no event, or it cannot be written.
        ValueError: it is larger than its topic takes.
    """
    if not isinstance(event, Event | ProtobufFact):
        raise TypeError(f"{who} publishes a {type(event).__name__}; {_cure(event)}")
    name = name_of(event)
    topic = topic or event.topic
    if not topic:
        raise TypeError(f'{name} has no topic: class {name}(Event, topic="…")')
    key = key or key_of(event)
    try:
        # Found out after a commit, it would be too late: the event would be lost, or its cause handled twice.
        data = encode(event)
        size_bytes, key_bytes = len(data), len(key.encode())
    except AttributeError:
        raise TypeError(f"{name}: an ordering key is text, not {type(key).__name__}") from None
    except ValueError as error:
        form = "" if isinstance(event, ProtobufFact) else " as JSON"
        raise TypeError(f"{name} cannot be written{form}: {error}") from error
    if size_bytes > MAX_EVENT_BYTES or key_bytes > MAX_KEY_BYTES:
        raise ValueError(
            f"{name} has {size_bytes:,} bytes and a key of {key_bytes:,}; "
            f"topic {topic} takes {MAX_EVENT_BYTES:,} and {MAX_KEY_BYTES:,}"
        )
    return EncodedEvent(topic, key, data)


def _cure(value: object) -> str:
    if is_protobuf(type(value)):
        return "bind its class to a topic with ProtobufEvent, and publish what that makes of it"
    return "declare it as a class of Event"
