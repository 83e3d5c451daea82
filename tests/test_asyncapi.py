"""The AsyncAPI document: what it says, and that the official JSON Schema of AsyncAPI 3.0.0 takes it."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import jsonschema
import pytest
from pydantic import BaseModel, Field

from cdc_reactor.asyncapi import About, document
from cdc_reactor.events import Event, ProtobufEvent, encode, event_type
from cdc_reactor.handlers import Context
from cdc_reactor.messages import Message
from cdc_reactor.workers import subscribes
from tests.protobuf_classes import MATCH, protobuf_class

OFFICIAL = json.loads((Path(__file__).parent / "asyncapi" / "asyncapi-3.0.0.json").read_text())


class Cat(BaseModel):
    kind: Literal["cat"]
    kittens: list[Cat] = []


class Dog(BaseModel):
    kind: Literal["dog"]


class Colour(Enum):
    RED = "red"


class Rich(Event, topic="rich.v1", key="colour"):
    """Something of everything."""

    colour: Colour = Field(description="What it looks like.")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, str]
    by_name: dict[Annotated[str, Field(pattern="^a")], int] = Field(default_factory=dict)
    price: Decimal | None = None
    lasts: timedelta = timedelta(0)
    mixed: Literal["x", 1] = "x"
    # Names of fields that are words of JSON Schema, too.
    discriminator: str = ""
    properties: dict[str, Any] = Field(default_factory=dict)
    default: Annotated[int, Field(gt=0, le=9)] = 3


class Tree(Event, topic="odd~+%name"):
    below: tuple[Tree, ...] = ()


class Upvoted(Event, topic="post.upvoted.v1"):
    post_id: int


@subscribes(Upvoted, subscription="post-upvoted-reputation", group="heavy", dedicated=True, owner="team-a")
def add_reputation(event: Upvoted, ctx: Context) -> None:
    """Add a point.

    And more that is no summary.
    """


@subscribes(Message, topic="raw.v1", subscription="raw", dead_letter="raw.dead")
def look(message: Message, ctx: Context) -> None: ...


MATCHED = ProtobufEvent(protobuf_class("Match", MATCH), topic="match.v1", key="user_id")
EVENTS = [
    event_type(Rich),
    event_type(Tree),
    event_type(Upvoted),
    event_type(MATCHED),
    event_type(Message, topic="raw.v1"),
]


def written(events: Any = EVENTS, workers: Any = (add_reputation, look)) -> Any:
    return json.loads(json.dumps(document(events, workers, About("Forum", "2.1.0", "What happens there."))))


def test_the_whole_document():
    headers = written()["components"]["schemas"]["EventAttributes"]
    channel = {"$ref": "#/channels/post.upvoted.v1"}
    messages = [{"$ref": "#/channels/post.upvoted.v1/messages/Upvoted"}]

    assert written([event_type(Upvoted)], [add_reputation]) == {
        "asyncapi": "3.0.0",
        "info": {"title": "Forum", "version": "2.1.0", "description": "What happens there."},
        "servers": {"pubsub": {"host": "pubsub.googleapis.com", "protocol": "googlepubsub"}},
        "defaultContentType": "application/json",
        "channels": {
            "post.upvoted.v1": {
                "address": "post.upvoted.v1",
                "messages": {
                    "Upvoted": {
                        "name": "Upvoted",
                        "contentType": "application/json",
                        "headers": {"$ref": "#/components/schemas/EventAttributes"},
                        "payload": {"$ref": "#/components/schemas/post.upvoted.v1"},
                        "bindings": {"googlepubsub": {"bindingVersion": "0.2.0"}},
                    }
                },
            }
        },
        "operations": {
            "send-post.upvoted.v1": {"action": "send", "channel": channel, "messages": messages},
            "receive-post-upvoted-reputation": {
                "action": "receive",
                "channel": channel,
                "messages": messages,
                "summary": "Add a point.",
                "x-subscription": "post-upvoted-reputation",
                "x-worker": "add_reputation",
                "x-kind": "typed",
                "x-group": "heavy",
                "x-dedicated": True,
                "x-ordered": True,
                "x-max-messages": 20,
                "x-max-attempts": 5,
                "x-owner": "team-a",
            },
        },
        "components": {
            "schemas": {
                "EventAttributes": headers,
                "post.upvoted.v1": {
                    "properties": {"post_id": {"title": "Post Id", "type": "integer"}},
                    "required": ["post_id"],
                    "title": "Upvoted",
                    "type": "object",
                },
            }
        },
    }


@pytest.mark.parametrize(("events", "workers"), [(EVENTS, (add_reputation, look)), ([], [])], ids=["rich", "empty"])
def test_the_official_schema_takes_it(events, workers):
    found = jsonschema.Draft7Validator(OFFICIAL).iter_errors(written(events, workers))

    assert [error.message for error in found] == []


def test_the_official_schema_would_not_take_anything():
    wrong = written()
    wrong["operations"]["receive-raw"]["action"] = "subscribe"

    assert not jsonschema.Draft7Validator(OFFICIAL).is_valid(wrong)


def test_every_reference_leads_somewhere():
    whole = written()

    def references(value: Any) -> list[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        own = [value["$ref"]] if isinstance(value, dict) and isinstance(value.get("$ref"), str) else []
        return own + [each for part in inner for each in references(part)]

    found = references(whole)
    assert "#/components/schemas/rich.v1.Cat" in found
    for reference in found:
        place = whole
        for part in unquote(reference).removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/").replace("~0", "~")]


def test_payloads_say_in_draft_07_what_pydantic_says_in_2020_12():
    schemas = written()["components"]["schemas"]
    rich = schemas["rich.v1"]["properties"]

    assert rich["pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert rich["pet"] == {
        "oneOf": [{"$ref": "#/components/schemas/rich.v1.Cat"}, {"$ref": "#/components/schemas/rich.v1.Dog"}],
        "title": "Pet",
    }
    assert rich["colour"] == {
        "allOf": [{"$ref": "#/components/schemas/rich.v1.Colour"}],
        "description": "What it looks like.",
    }
    assert rich["discriminator"] == {"default": "", "title": "Discriminator", "type": "string"}
    assert set(Rich.model_fields) == set(rich)
    assert "#/$defs" not in json.dumps(schemas)


def test_a_payload_takes_what_the_event_is_published_as():
    whole = written()
    rich = Rich.model_validate(
        {"colour": "red", "pet": {"kind": "cat", "kittens": [{"kind": "cat"}]}, "pair": (1, "a"), "by_name": {"ab": 1}}
    )
    payload = {"$ref": "#/components/schemas/rich.v1", "components": whole["components"]}

    jsonschema.Draft7Validator(payload).validate(json.loads(encode(rich)))


def test_protobuf_is_told_by_the_text_of_its_file():
    message = written()["channels"]["match.v1"]["messages"]["Match"]

    assert message["contentType"] == "application/protobuf"
    assert message["payload"]["schemaFormat"] == "application/vnd.google.protobuf;version=3"
    assert message["payload"]["schema"].startswith('syntax = "proto3";\n\npackage acme.v1;\n')
    assert message["bindings"] == {"googlepubsub": {"bindingVersion": "0.2.0", "orderingKey": "{user_id}"}}


def test_what_is_only_read_is_sent_by_nobody():
    operations = written()["operations"]

    assert "send-raw.v1" not in operations
    assert operations["receive-raw"]["x-dead-letter"] == "raw.dead"
    assert "payload" not in written()["channels"]["raw.v1"]["messages"]["Message"]
