"""What topics carry, as plain values: the export that `cdc-reactor events --json` prints and `events check` compares.

Pure: event types go in, JSON comes out. `event_changes` compares two exports, `asyncapi` makes a document of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError

from cdc_reactor.errors import DefinitionError
from cdc_reactor.events import Encoding, Event, EventType
from cdc_reactor.protobuf_shapes import shape_of

#: Of the export. A reader refuses what is later than it knows.
VERSION = 1

#: How a nested model is referred to.
_REF = "#/$defs/"

# What each kind of JSON value may be called in one word of a schema.
_SCALARS = {"string": "text", "integer": "integer", "number": "number", "boolean": "boolean", "null": "null"}


class _Quiet(GenerateJsonSchema):
    """Says nothing of a default that has no JSON: readers of a schema do without it."""

    def encode_default(self, dft: Any) -> Any:
        """Refuse infinities, too: JSON has none."""
        value = super().encode_default(dft)
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise PydanticSerializationError(str(error)) from None
        return value

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Leave it out."""


def export(events: Iterable[EventType[Any]]) -> dict[str, Any]:
    """Return what each topic carries: `{"version": 1, "events": {TOPIC: {name, encoding, key, schema}}}`.

    `schema` is a JSON Schema (2020-12) where a message is JSON, `{"fields": …}` where it is Protobuf, and empty where
    nobody says how it is written.

    Raises:
        DefinitionError: a field of an event has no JSON Schema.
    """
    return {"version": VERSION, "events": {event.topic: _entry(event) for event in events}}


def _entry(event: EventType[Any]) -> dict[str, Any]:
    return {
        "name": event.name,
        "encoding": str(event.encoding),
        "key": event.key_field,
        "schema": schema_of(event),
    }


def schema_of(event: EventType[Any]) -> dict[str, Any]:
    """Return what a topic's messages look like; see `export`."""
    if event.encoding in (Encoding.PROTOBUF, Encoding.PROTOBUF_JSON):
        return shape_of(event.model)
    # An Event is published as JSON, whatever one of its workers makes of it.
    return json_schema(event.model, event.topic) if issubclass(event.model, Event) else {}


def json_schema(model: type[BaseModel], topic: str) -> dict[str, Any]:
    """Return the JSON Schema of what a model reads: its required fields are those without a default.

    Raises:
        DefinitionError: one of its fields has none.
    """
    try:
        return model.model_json_schema(schema_generator=_Quiet, ref_template=f"{_REF}{{model}}")
    except PydanticInvalidForJsonSchema as error:
        reason = str(error).partition("\n")[0]
        raise DefinitionError(
            f"{model.__name__} ({topic}): a field of it has no JSON Schema: {reason}. Give it a type that JSON has, or "
            "annotate it with pydantic's WithJsonSchema"
        ) from None


# ── in words ────────────────────────────────────────────────────────────────────────────────────────────────────────


def fields_of(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return name and type in words of each field of an export's entry, in their order."""
    schema = entry["schema"]
    if "fields" in schema:
        for number, field in schema["fields"].items():
            yield field["name"], f"{protobuf_words(field, schema)} = {number}"
        return
    if "$ref" in schema:
        # A model that holds itself is one of its own definitions.
        schema = schema["$defs"][words(schema)]
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield name, words(field) if name in required else f"{words(field)}, optional"


def protobuf_words(field: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """Say what a field of a Protobuf class holds: `repeated acme.v1.Skill`, `map<string, int32>`."""
    entry = shape.get("messages", {}).get(field.get("of"), {})
    if entry.get("map"):
        key, value = (protobuf_words({**each, "label": "implicit"}, shape) for each in entry["fields"].values())
        return f"map<{key}, {value}>"
    label = "" if field["label"] == "implicit" else f"{field['label']} "
    return f"{label}{field.get('of', field['type'])}"


def words(schema: Any) -> str:
    """Say in a few words what a JSON Schema takes: `integer or null`, `list of text (uuid)`, `Author`."""
    if not isinstance(schema, Mapping):
        return "nothing" if schema is False else "anything"
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_REF)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(words(choice) for choice in choices))
    if "const" in schema or "enum" in schema:
        return " | ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    return _typed_words(schema)


def _typed_words(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    match kind:
        case "array" if "prefixItems" in schema:
            return f"({', '.join(words(item) for item in schema['prefixItems'])})"
        case "array":
            return f"{'set' if schema.get('uniqueItems') else 'list'} of {words(schema.get('items', True))}"
        case "object" if "properties" in schema:
            return str(schema.get("title", "object"))
        case "object":
            inner = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties", True)]
            return f"map of {words(inner[0])}"
        case list():
            return " or ".join(words({**schema, "type": each}) for each in kind)
    word = _SCALARS.get(str(kind), "anything")
    return f"{word} ({schema['format']})" if "format" in schema else word
