"""Schemas and their revisions, and whether messages obey them.

Avro definitions are parsed, and messages of topics with an Avro schema are read with it (fastavro). Protobuf
definitions are looked at only on the surface, one message at the top, and messages of their topics are not checked:
that needs a protobuf compiler.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastavro import json_reader, schemaless_reader, validate
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from cdc_reactor.local import definitions, names, protos
from cdc_reactor.local.broker import Broker
from cdc_reactor.local.journal import Op
from cdc_reactor.local.names import Kind
from cdc_reactor.local.refusals import already_exists, invalid, not_found, precondition

DELETED_SCHEMA = "_deleted-schema_"
MAX_REVISIONS = 20
MAX_DEFINITION_BYTES = 300_000

_TYPE = protos.Schema.Type
_JSON, _BINARY = 1, 2


class SchemaRegistry:
    """Schemas by name, each the list of its revisions, oldest first."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._schemas: dict[str, list[Any]] = {}
        self._parsed: dict[str, Any] = {}

    # ── schemas ──

    def create(self, name: str, schema: Any, now: float) -> Any:
        """Create a schema; raises ALREADY_EXISTS, or INVALID_ARGUMENT for a bad definition."""
        names.check(Kind.SCHEMA, name)
        check_definition(schema)
        if name in self._schemas:
            raise already_exists(name)
        self._schemas[name] = []
        return self._append(name, schema, now)

    def get(self, name: str) -> Any:
        """Return a schema's newest revision, or the one behind an @; raises NOT_FOUND."""
        plain, _, revision = name.partition("@")
        revisions = self.revisions(plain)
        if not revision:
            return revisions[-1]
        for schema in revisions:
            if schema.revision_id == revision:
                return schema
        raise not_found(name)

    def revisions(self, name: str) -> list[Any]:
        """Return all revisions, oldest first; raises NOT_FOUND."""
        names.check(Kind.SCHEMA, name)
        try:
            return self._schemas[name]
        except KeyError:
            raise not_found(name) from None

    def all(self) -> list[Any]:
        """Return the newest revision of every schema."""
        return [revisions[-1] for revisions in self._schemas.values()]

    def commit(self, name: str, schema: Any, now: float) -> Any:
        """Add a revision; raises NOT_FOUND, or INVALID_ARGUMENT for a bad definition or another type."""
        current = self.revisions(name)[-1]
        check_definition(schema)
        if schema.type_ != current.type_:
            raise invalid(f"The type of a schema cannot change (resource={name}).")
        return self._append(name, schema, now)

    def roll_back(self, name: str, revision: str, now: float) -> Any:
        """Make an old revision the newest, under a new revision id."""
        return self._append(name, self.get(f"{name}@{revision}"), now)

    def delete_revision(self, name: str, revision: str) -> Any:
        """Delete one revision, not the last one left; return the newest."""
        plain, _, behind = name.partition("@")
        found = self.get(f"{plain}@{behind or revision}")
        revisions = self.revisions(plain)
        if len(revisions) == 1:
            raise precondition(f"The only revision of a schema cannot be deleted (resource={plain}).")
        revisions.remove(found)
        self._note(plain)
        return revisions[-1]

    def delete(self, name: str) -> None:
        """Delete a schema; topics that used it say `_deleted-schema_` and take no message any more."""
        self.revisions(name)
        del self._schemas[name]
        self._broker.journal.note(Op.REMOVED, (Kind.SCHEMA.value, name))
        for topic in self._broker.topics.values():
            if topic.definition.schema_settings.schema == name:
                definition = definitions.with_schema(topic.definition, DELETED_SCHEMA)
                self._broker.update_topic(topic, topic.options, definition)

    def restore(self, name: str, stored: bytes) -> None:
        """Put a schema in its place, as `_note` wrote it."""
        self._schemas[name] = list(protos.ListSchemaRevisionsResponse.FromString(stored).schemas)

    def _append(self, name: str, schema: Any, now: float) -> Any:
        revisions = self._schemas[name]
        if len(revisions) >= MAX_REVISIONS:
            raise precondition(f"A schema has at most {MAX_REVISIONS} revisions; delete one (resource={name}).")
        revision = protos.Schema(name=name, type_=schema.type_, definition=schema.definition)
        revision.revision_id = f"{self._broker.next_seq() & 0xFFFFFFFF:08x}"
        definitions.set_seconds(revision.revision_create_time, now)
        revisions.append(revision)
        self._note(name)
        return revision

    def _note(self, name: str) -> None:
        stored = protos.ListSchemaRevisionsResponse(schemas=self._schemas[name])
        self._broker.journal.note(Op.DEFINED, (Kind.SCHEMA.value, name, 0, 0, 0.0, stored))

    # ── messages ──

    def check_settings(self, settings: Any) -> None:
        """Check what a topic says of its schema; raises NOT_FOUND, or INVALID_ARGUMENT."""
        if settings.schema == DELETED_SCHEMA:
            return
        self.revisions(settings.schema)
        if settings.encoding not in (_JSON, _BINARY):
            raise invalid("schema_settings need an encoding: JSON or BINARY.")

    def check_messages(self, settings: Any, messages: Iterable[Any]) -> list[dict[str, str]]:
        """Check messages against a topic's schema; return the attributes that tell subscribers which it was.

        Raises INVALID_ARGUMENT for the first that does not obey, or when the schema is deleted.
        """
        if settings.schema not in self._schemas:
            raise invalid("The topic's schema is deleted: nothing can be published to it.")
        allowed = self._within(settings)[::-1]
        return [self._attributes(settings, allowed, message.data) for message in messages]

    def _attributes(self, settings: Any, allowed: Sequence[Any], data: bytes) -> dict[str, str]:
        for schema in allowed:
            if self._obeys(schema, settings.encoding, data):
                # https://cloud.google.com/pubsub/docs/schemas#attributes names these.
                return {
                    "googclient_schemaencoding": "JSON" if settings.encoding == _JSON else "BINARY",
                    "googclient_schemaname": schema.name,
                    "googclient_schemarevisionid": schema.revision_id,
                }
        raise invalid(f"Request contains a message that does not obey its schema (schema={settings.schema}).")

    def check_message(self, schema: Any, encoding: int, data: bytes) -> None:
        """Check one message against one schema; raises INVALID_ARGUMENT."""
        check_definition(schema)
        if not self._obeys(schema, encoding, data):
            raise invalid("The message does not obey the schema.")

    def _within(self, settings: Any) -> list[Any]:
        """Return the revisions that a topic allows, from the first to the last that it names."""
        revisions = self._schemas[settings.schema]
        ids = [schema.revision_id for schema in revisions]
        first = ids.index(settings.first_revision_id) if settings.first_revision_id in ids else 0
        last = ids.index(settings.last_revision_id) if settings.last_revision_id in ids else len(ids) - 1
        return revisions[first : last + 1]

    def _obeys(self, schema: Any, encoding: int, data: bytes) -> bool:
        if schema.type_ != _TYPE.Value("AVRO"):
            return True
        parsed = self._parsed.get(schema.definition)
        if parsed is None:
            parsed = self._parsed[schema.definition] = _parse_avro(schema.definition)
        return _is_avro(parsed, encoding, data)


def check_definition(schema: Any) -> None:
    """Check a schema's definition; raises INVALID_ARGUMENT."""
    if not schema.definition:
        raise invalid("The schema has no definition.")
    if len(schema.definition.encode()) > MAX_DEFINITION_BYTES:
        raise invalid(f"The schema's definition has more than {MAX_DEFINITION_BYTES} bytes.")
    if schema.type_ == _TYPE.Value("AVRO"):
        _parse_avro(schema.definition)
    elif schema.type_ == _TYPE.Value("PROTOCOL_BUFFER"):
        _check_protobuf(schema.definition)
    else:
        raise invalid("The schema has no type: AVRO or PROTOCOL_BUFFER.")


def _parse_avro(definition: str) -> Any:
    try:
        return parse_schema(json.loads(definition), named_schemas={})
    except (ValueError, KeyError, TypeError, SchemaParseException, UnknownType) as error:
        raise invalid(f"The schema's definition is no Avro schema: {error}.") from None


def _is_avro(parsed: Any, encoding: int, data: bytes) -> bool:
    try:
        if encoding == _JSON:
            values = list(json_reader(io.StringIO(data.decode()), parsed))
            return len(values) == 1 and bool(validate(values[0], parsed, raise_errors=False))
        reader = io.BytesIO(data)
        schemaless_reader(reader, parsed, None)
        return reader.tell() == len(data)
    except Exception:  # noqa: BLE001 - fastavro raises whatever the bytes make it stumble over
        return False


def _check_protobuf(definition: str) -> None:
    bare = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\]|\\.)*\"", "", definition, flags=re.DOTALL)
    depth, outside = 0, []
    for character in bare:
        if character == "}":
            depth -= 1
        if depth == 0:
            outside.append(character)
        if character == "{":
            depth += 1
        if depth < 0:
            break
    if depth or len(re.findall(r"\bmessage\s+\w+\s*\{", "".join(outside))) != 1:
        raise invalid("The schema's definition is no Protobuf file with exactly one message at its top.")
