"""SchemaService, and topics that validate what is published: https://cloud.google.com/pubsub/docs/schemas."""

from __future__ import annotations

import json

import pytest
from google.pubsub_v1.types import Encoding, PubsubMessage, Schema, SchemaView

AVRO = json.dumps({"type": "record", "name": "User", "fields": [{"name": "id", "type": "long"}]})
AVRO_2 = json.dumps(
    {
        "type": "record",
        "name": "User",
        "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "string", "default": ""}],
    }
)
PROTO = 'syntax = "proto3"; message User { int64 id = 1; }'


@pytest.fixture
def create(pubsub):
    def create(definition=AVRO, kind=Schema.Type.AVRO):
        name = pubsub.name("schemas")
        request = {
            "parent": pubsub.project,
            "schema": Schema(type_=kind, definition=definition),
            "schema_id": name.rsplit("/", 1)[1],
        }
        return pubsub.schemas.create_schema(request)

    return create


@pytest.mark.parametrize(
    ("definition", "kind"), [(AVRO, Schema.Type.AVRO), (PROTO, Schema.Type.PROTOCOL_BUFFER)], ids=["avro", "protobuf"]
)
def test_a_schema_is_given_back_as_it_was_made(pubsub, create, definition, kind):
    made = create(definition, kind)

    found = pubsub.schemas.get_schema({"name": made.name, "view": SchemaView.FULL})

    assert (found.name, found.type_, found.definition) == (made.name, kind, definition)
    assert found.revision_id == made.revision_id != ""


def test_the_basic_view_has_no_definition(pubsub, create):
    made = create()

    found = pubsub.schemas.get_schema({"name": made.name, "view": SchemaView.BASIC})

    assert (found.type_, found.definition) == (Schema.Type.AVRO, "")


def test_a_name_is_taken_once(pubsub, create):
    made = create()
    schema = Schema(type_=Schema.Type.AVRO, definition=AVRO)

    with pubsub.refuses("ALREADY_EXISTS"):
        pubsub.schemas.create_schema(
            {"parent": pubsub.project, "schema": schema, "schema_id": made.name.rsplit("/", 1)[1]}
        )


@pytest.mark.parametrize("call", ["get_schema", "delete_schema", "list_schema_revisions"])
def test_a_schema_that_is_not_there_is_not_found(pubsub, call):
    with pubsub.refuses("NOT_FOUND"):
        getattr(pubsub.schemas, call)({"name": pubsub.name("schemas")})


def test_a_deleted_schema_is_not_found(pubsub, create):
    made = create()

    pubsub.schemas.delete_schema({"name": made.name})

    with pubsub.refuses("NOT_FOUND"):
        pubsub.schemas.get_schema({"name": made.name})


def test_a_project_lists_its_schemas(pubsub, create):
    names = [create().name for _ in range(3)]

    pages = pubsub.schemas.list_schemas({"parent": pubsub.project, "page_size": 2})

    assert sorted(one.name for one in pages if one.name in names) == sorted(names)


@pytest.mark.parametrize(
    ("definition", "kind"),
    [("{", Schema.Type.AVRO), ("message {", Schema.Type.PROTOCOL_BUFFER)],
    ids=["avro", "protobuf"],
)
def test_a_definition_that_is_none_is_refused(pubsub, create, definition, kind):
    with pubsub.refuses("INVALID_ARGUMENT"):
        create(definition, kind)


def test_a_definition_can_be_checked_without_keeping_it(pubsub):
    good, bad = Schema(type_=Schema.Type.AVRO, definition=AVRO), Schema(type_=Schema.Type.AVRO, definition="{")

    pubsub.schemas.validate_schema({"parent": pubsub.project, "schema": good})

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.schemas.validate_schema({"parent": pubsub.project, "schema": bad})


def test_a_message_can_be_checked_without_publishing_it(pubsub, create):
    request = {"parent": pubsub.project, "name": create().name, "encoding": Encoding.JSON}

    pubsub.schemas.validate_message({**request, "message": b'{"id": 1}'})

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.schemas.validate_message({**request, "message": b'{"id": "one"}'})


def test_a_schema_has_revisions(pubsub, create):
    made = create()
    second = Schema(name=made.name, type_=Schema.Type.AVRO, definition=AVRO_2)

    committed = pubsub.schemas.commit_schema({"name": made.name, "schema": second})

    assert committed.revision_id not in {"", made.revision_id}
    assert pubsub.schemas.get_schema({"name": made.name}).definition == AVRO_2
    first = pubsub.schemas.get_schema({"name": f"{made.name}@{made.revision_id}"})
    assert first.definition == AVRO
    revisions = pubsub.schemas.list_schema_revisions({"name": made.name, "view": SchemaView.FULL})
    assert [one.definition for one in revisions] == [AVRO_2, AVRO]


def test_a_rollback_is_a_new_revision_of_the_old_definition(pubsub, create):
    made = create()
    pubsub.schemas.commit_schema(
        {"name": made.name, "schema": Schema(name=made.name, type_=Schema.Type.AVRO, definition=AVRO_2)}
    )

    rolled = pubsub.schemas.rollback_schema({"name": made.name, "revision_id": made.revision_id})

    assert (rolled.definition, rolled.revision_id != made.revision_id) == (AVRO, True)


def test_a_revision_can_be_deleted_but_not_the_last(pubsub, create):
    made = create()
    second = pubsub.schemas.commit_schema(
        {"name": made.name, "schema": Schema(name=made.name, type_=Schema.Type.AVRO, definition=AVRO_2)}
    )

    pubsub.schemas.delete_schema_revision({"name": f"{made.name}@{made.revision_id}"})

    left = [one.revision_id for one in pubsub.schemas.list_schema_revisions({"name": made.name})]
    assert left == [second.revision_id]
    with pubsub.refuses("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
        pubsub.schemas.delete_schema_revision({"name": f"{made.name}@{second.revision_id}"})


def test_a_topic_with_a_schema_takes_what_fits_it_and_refuses_the_rest(pubsub, create):
    schema = create()
    topic = pubsub.topic(schema_settings={"schema": schema.name, "encoding": Encoding.JSON})
    subscription = pubsub.subscription(topic)

    pubsub.publish(topic, '{"id": 1}')
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish(topic, '{"id": "one"}')

    (received,) = pubsub.pull(subscription, 1)
    assert received.message.data == b'{"id": 1}'
    assert dict(received.message.attributes) == {
        "googclient_schemaencoding": "JSON",
        "googclient_schemaname": schema.name,
        "googclient_schemarevisionid": schema.revision_id,
    }


def test_a_topic_with_a_schema_that_is_not_there_is_not_found(pubsub):
    with pubsub.refuses("NOT_FOUND"):
        pubsub.topic(schema_settings={"schema": pubsub.name("schemas"), "encoding": Encoding.JSON})


def test_a_topic_of_a_deleted_schema_says_so_and_takes_nothing(pubsub, create):
    schema = create()
    topic = pubsub.topic(schema_settings={"schema": schema.name, "encoding": Encoding.JSON})

    pubsub.schemas.delete_schema({"name": schema.name})

    assert pubsub.publisher.get_topic({"topic": topic}).schema_settings.schema == "_deleted-schema_"
    with pubsub.refuses("FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"):
        pubsub.publish(topic, PubsubMessage(data=b'{"id": 1}'))
