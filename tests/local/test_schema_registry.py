"""Schemas: definitions, revisions, and messages that must obey them."""

from __future__ import annotations

import io

import fastavro
import pytest

from cdc_reactor.local import protos
from cdc_reactor.local.broker import Broker
from cdc_reactor.local.refusals import Code, Refused
from cdc_reactor.local.schema_registry import SchemaRegistry, check_definition

NAME = "projects/p/schemas/user"
AVRO = '{"type": "record", "name": "User", "fields": [{"name": "id", "type": "int"}]}'
WIDER = '{"type": "record", "name": "User", "fields": [{"name": "id", "type": ["int", "string"]}]}'
PROTO = """
syntax = "proto3";
// message Other {}
message User { int32 id = 1; message Inner {} }
"""
JSON, BINARY = 1, 2


def avro(definition=AVRO):
    return protos.Schema(type_="AVRO", definition=definition)


@pytest.fixture
def registry():
    return SchemaRegistry(Broker(nonce="n"))


@pytest.mark.parametrize("schema", [avro(), protos.Schema(type_="PROTOCOL_BUFFER", definition=PROTO)])
def test_definitions_that_are_well_pass(schema):
    check_definition(schema)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "no definition"),
        ({"definition": AVRO}, "no type"),
        ({"type_": "AVRO", "definition": "{"}, "no Avro schema"),
        ({"type_": "AVRO", "definition": '"unheard-of"'}, "no Avro schema"),
        ({"type_": "AVRO", "definition": " " * 300_001}, "more than 300000 bytes"),
        ({"type_": "PROTOCOL_BUFFER", "definition": 'syntax = "proto3";'}, "exactly one message"),
        ({"type_": "PROTOCOL_BUFFER", "definition": "message A {} message B {}"}, "exactly one message"),
        ({"type_": "PROTOCOL_BUFFER", "definition": "message A { }}"}, "exactly one message"),
    ],
)
def test_definitions_that_are_not_are_refused(fields, told):
    with pytest.raises(Refused, match=told) as refused:
        check_definition(protos.Schema(**fields))

    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("data", "obeys"), [(b'{"id": 1}', True), (b'{"id": "1"}', False), (b"{}", False), (b"x", False)]
)
def test_json_messages_obey_or_not(registry, data, obeys):
    if obeys:
        registry.check_message(avro(), JSON, data)
        return
    with pytest.raises(Refused):
        registry.check_message(avro(), JSON, data)


def test_binary_messages_obey_to_their_last_byte(registry):
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out,
        fastavro.parse_schema({"type": "record", "name": "U", "fields": [{"name": "id", "type": "int"}]}),
        {"id": 300},
    )
    registry.check_message(avro(), BINARY, out.getvalue())

    with pytest.raises(Refused):
        registry.check_message(avro(), BINARY, out.getvalue() + b"x")


def test_a_topic_takes_what_any_of_its_revisions_allows_and_tells_which(registry):
    first = registry.create(NAME, avro(), 1.0)
    second = registry.commit(NAME, avro(WIDER), 2.0)
    settings = protos.Topic().schema_settings
    settings.schema, settings.encoding = NAME, JSON
    messages = [protos.PubsubMessage(data=data) for data in (b'{"id": 1}', b'{"id": {"string": "x"}}')]

    told = registry.check_messages(settings, messages)

    assert [attributes["googclient_schemarevisionid"] for attributes in told] == [first.revision_id, second.revision_id]
    settings.last_revision_id = first.revision_id
    with pytest.raises(Refused, match="does not obey"):
        registry.check_messages(settings, messages)


def test_revisions_are_kept_rolled_back_and_deleted(registry):
    first = registry.create(NAME, avro(), 1.0)
    second = registry.commit(NAME, avro(WIDER), 2.0)
    third = registry.roll_back(NAME, first.revision_id, 3.0)

    assert [schema.definition for schema in registry.revisions(NAME)] == [AVRO, WIDER, AVRO]
    assert len({schema.revision_id for schema in registry.revisions(NAME)}) == 3
    assert registry.delete_revision(NAME, third.revision_id) == second
    assert registry.get(f"{NAME}@{first.revision_id}") == first
    registry.delete_revision(f"{NAME}@{first.revision_id}", "")
    with pytest.raises(Refused, match="only revision"):
        registry.delete_revision(NAME, second.revision_id)


def test_a_schema_keeps_its_type(registry):
    registry.create(NAME, avro(), 1.0)

    with pytest.raises(Refused, match="type of a schema cannot change"):
        registry.commit(NAME, protos.Schema(type_="PROTOCOL_BUFFER", definition=PROTO), 2.0)


def test_names_are_taken_and_missed(registry):
    registry.create(NAME, avro(), 1.0)

    for call, code in (
        (lambda: registry.create(NAME, avro(), 1.0), Code.ALREADY_EXISTS),
        (lambda: registry.get("projects/p/schemas/none"), Code.NOT_FOUND),
        (lambda: registry.get(f"{NAME}@none"), Code.NOT_FOUND),
        (lambda: registry.get("none"), Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.code is code
