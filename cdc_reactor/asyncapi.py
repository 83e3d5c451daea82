"""The AsyncAPI 3.0 document of all topics, what they carry, and which workers subscribe to them.

Pure: event types and workers in, a document of plain values out, which `catalogue_command` prints. The words are those
of https://www.asyncapi.com/docs/reference/specification/v3.0.0; a channel is a topic, an operation is a worker that
receives, or an event that is sent. Its schemas are draft 07 of JSON Schema, where pydantic's are 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc_reactor.event_schemas import json_schema
from cdc_reactor.events import EVENT_ID, Encoding, Event, EventType
from cdc_reactor.protobuf_shapes import proto_text, syntax_of
from cdc_reactor.workers import Worker

VERSION = "3.0.0"

_HEADERS = "EventAttributes"
_CONTENT = {
    Encoding.JSON: "application/json",
    Encoding.PROTOBUF: "application/protobuf",
    Encoding.PROTOBUF_JSON: "application/json",
    Encoding.CUSTOM: "application/octet-stream",
    Encoding.RAW: "application/octet-stream",
}
# Of the components' names.
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9.\-_]")
_NOT_IN_URI = re.compile(r"[^A-Za-z0-9.\-_~]")


@dataclass(frozen=True, slots=True)
class About:
    """What the document says of itself; `version` is of the whole document, not of an event."""

    title: str = "Events and workers"
    version: str = "1.0.0"
    description: str = ""


def document(events: Sequence[EventType[Any]], workers: Sequence[Worker[Any]], about: About) -> dict[str, Any]:
    """Return the document.

    Raises:
        DefinitionError: a field of an event has no JSON Schema.
    """
    schemas: dict[str, Any] = {_HEADERS: _headers()}
    channels = {event.topic: _channel(event, schemas) for event in events}
    names = {event.topic: event.name for event in events}
    sent = {f"send-{event.topic}": _send(event) for event in events if _is_declared(event)}
    received = {f"receive-{worker.subscription}": _receive(worker, names[worker.topic]) for worker in workers}
    info = {"title": about.title, "version": about.version}
    return {
        "asyncapi": VERSION,
        "info": {**info, "description": about.description} if about.description else info,
        "servers": {"pubsub": {"host": "pubsub.googleapis.com", "protocol": "googlepubsub"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {**sent, **received},
        "components": {"schemas": schemas},
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Attributes of a message that cdc-reactor published.",
        "properties": {
            EVENT_ID: {"type": "string", "description": "The same however often the event is delivered or published."},
            "traceparent": {"type": "string", "description": "W3C Trace Context: the trace that the event is part of."},
            "tracestate": {"type": "string", "description": "W3C Trace Context: what vendors add to the trace."},
        },
        "additionalProperties": {"type": "string"},
    }


def _is_declared(event: EventType[Any]) -> bool:
    """Tell whether the topic has an event that can be published, and not only somebody who reads it."""
    return event.encoding in (Encoding.JSON, Encoding.PROTOBUF, Encoding.PROTOBUF_JSON) or issubclass(
        event.model, Event
    )


# ── channels and messages ───────────────────────────────────────────────────────────────────────────────────────────


def _channel(event: EventType[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return {"address": event.topic, "messages": {event.name: _message(event, schemas)}}


def _message(event: EventType[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": event.name,
        "contentType": _CONTENT[event.encoding],
        "headers": {"$ref": f"#/components/schemas/{_HEADERS}"},
    }
    if event.encoding in (Encoding.PROTOBUF, Encoding.PROTOBUF_JSON):
        message["payload"] = _protobuf_payload(event.model)
    elif issubclass(event.model, Event):
        message["payload"] = _json_payload(event, schemas)
    if about := _about(event.model):
        message["description"] = about
    return {**message, "bindings": {"googlepubsub": _binding(event)}}


def _about(model: type[Any]) -> str:
    # Only what was written for this class: an inherited text is not about it.
    text = vars(model).get("__doc__")
    return " ".join(text.split()) if isinstance(text, str) and issubclass(model, Event) else ""


def _binding(event: EventType[Any]) -> dict[str, str]:
    # The binding of a channel must name a schema of the schema service, which nobody declares here.
    binding = {"bindingVersion": "0.2.0"}
    return {**binding, "orderingKey": f"{{{event.key_field}}}"} if event.key_field else binding


def _protobuf_payload(model: Any) -> dict[str, Any]:
    version = syntax_of(model.DESCRIPTOR).removeprefix("proto")
    return {"schemaFormat": f"application/vnd.google.protobuf;version={version}", "schema": proto_text(model)}


def _json_payload(event: EventType[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Put an event and the models in it among the components; return the reference to it."""
    schema = json_schema(event.model, event.topic)
    own = _NOT_ALLOWED.sub(lambda found: f"_{ord(found[0]):X}", event.topic)
    for name, model in schema.pop("$defs", {}).items():
        schemas[f"{own}.{name}"] = _as_draft_07(model, own)
    schemas[own] = _as_draft_07(schema, own)
    return {"$ref": f"#/components/schemas/{own}"}


# Under these words stand values or names, and no schemas.
_VALUES = frozenset(("const", "default", "enum", "examples", "required"))
_BY_NAME = frozenset(("patternProperties", "properties"))


def _as_draft_07(schema: Any, own: str) -> Any:
    """Rewrite what draft 07 says in other words; references lead to the components, named after the topic."""
    if isinstance(schema, list):
        return [_as_draft_07(each, own) for each in schema]
    if not isinstance(schema, dict):
        return schema
    written = {word: _inside(word, value, lambda inner: _as_draft_07(inner, own)) for word, value in schema.items()}
    # In AsyncAPI it is a property's name and means inheritance; each choice of the union has its constant anyway.
    written.pop("discriminator", None)
    if "prefixItems" in written:
        rest = {"additionalItems": written["items"]} if "items" in written else {}
        written = {**written, "items": written["prefixItems"], **rest}
        del written["prefixItems"]
    if "$ref" in written:
        reference = {"$ref": f"#/components/schemas/{own}.{written.pop('$ref').rpartition('/')[2]}"}
        # What stands beside a reference is not read: draft-handrews-json-schema-01, 8.3.
        return {"allOf": [reference], **written} if written else reference
    return written


def _inside(word: str, value: Any, rewrite: Callable[[Any], Any]) -> Any:
    if word in _VALUES:
        return value
    if word in _BY_NAME and isinstance(value, Mapping):
        return {name: rewrite(inner) for name, inner in value.items()}
    return rewrite(value)


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _send(event: EventType[Any]) -> dict[str, Any]:
    return {"action": "send", **_channel_of(event.topic, event.name)}


def _receive(worker: Worker[Any], message: str) -> dict[str, Any]:
    summary = (worker.function.__doc__ or "").strip().partition("\n")[0]
    told = {
        "x-subscription": worker.subscription,
        "x-worker": worker.name,
        "x-kind": str(worker.kind),
        "x-group": worker.group,
        "x-dedicated": worker.dedicated,
        "x-ordered": worker.ordered,
        "x-max-messages": worker.max_messages,
        "x-max-attempts": worker.max_attempts,
        "x-dead-letter": worker.dead_letter,
        "x-owner": worker.owner,
    }
    return {
        "action": "receive",
        **_channel_of(worker.topic, message),
        **({"summary": summary} if summary else {}),
        **{word: value for word, value in told.items() if value != ""},
    }


def _channel_of(topic: str, message: str) -> dict[str, Any]:
    channel = f"#/channels/{_pointed(topic)}"
    return {"channel": {"$ref": channel}, "messages": [{"$ref": f"{channel}/messages/{_pointed(message)}"}]}


def _pointed(name: str) -> str:
    """Write a name as a part of a JSON pointer in a URI: RFC 6901, sections 3 and 6."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return _NOT_IN_URI.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), escaped)
