"""The export of what topics carry."""

from __future__ import annotations

from datetime import datetime
from math import inf
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field

from cdc_reactor.errors import DefinitionError
from cdc_reactor.event_schemas import export, fields_of
from cdc_reactor.events import Event, ProtobufEvent, event_type
from cdc_reactor.messages import Message
from tests.protobuf_classes import MATCH, protobuf_class


class Author(BaseModel):
    name: str


class PostUpvoted(Event, topic="post.upvoted.v1", key="post_id"):
    """Somebody likes a post."""

    post_id: UUID
    votes: int = 1
    authors: list[Author] | None = None


class Tree(Event, topic="tree.grown.v1"):
    below: tuple[Tree, ...] = ()


class Legacy:
    pass


def test_an_export_says_what_each_topic_carries():
    raw = event_type(Message, topic="raw.v1")
    legacy = event_type(Legacy, topic="legacy.v1", parse=lambda _: Legacy())

    assert export([event_type(PostUpvoted), raw, legacy]) == {
        "version": 1,
        "events": {
            "post.upvoted.v1": {
                "name": "PostUpvoted",
                "encoding": "json",
                "key": "post_id",
                "schema": {
                    "$defs": {
                        "Author": {
                            "properties": {"name": {"title": "Name", "type": "string"}},
                            "required": ["name"],
                            "title": "Author",
                            "type": "object",
                        }
                    },
                    "description": "Somebody likes a post.",
                    "properties": {
                        "post_id": {"format": "uuid", "title": "Post Id", "type": "string"},
                        "votes": {"default": 1, "title": "Votes", "type": "integer"},
                        "authors": {
                            "anyOf": [{"items": {"$ref": "#/$defs/Author"}, "type": "array"}, {"type": "null"}],
                            "default": None,
                            "title": "Authors",
                        },
                    },
                    "required": ["post_id"],
                    "title": "PostUpvoted",
                    "type": "object",
                },
            },
            "raw.v1": {"name": "Message", "encoding": "raw", "key": "", "schema": {}},
            "legacy.v1": {"name": "Legacy", "encoding": "custom", "key": "", "schema": {}},
        },
    }


def test_a_protobuf_class_is_exported_by_its_fields():
    matched = ProtobufEvent(protobuf_class("Place", MATCH), topic="place.v1", encoding="protobuf-json", key="data")

    assert export([event_type(matched)])["events"] == {
        "place.v1": {
            "name": "Place",
            "encoding": "protobuf-json",
            "key": "data",
            "schema": {
                "message": "acme.v1.Place",
                "fields": {"1": {"name": "data", "json_name": "data", "type": "bytes", "label": "implicit"}},
                "reserved": {"numbers": [], "names": []},
                "messages": {},
                "enums": {},
            },
        }
    }


def test_an_event_that_a_worker_parses_in_its_own_way_is_still_published_as_json():
    own = event_type(PostUpvoted, parse=lambda _: PostUpvoted(post_id=UUID(int=1)))

    assert export([own])["events"]["post.upvoted.v1"]["schema"]["title"] == "PostUpvoted"


def test_a_field_without_a_json_schema_is_told_with_the_cure():
    class Odd(Event, topic="odd.v1"):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        legacy: Legacy

    with pytest.raises(DefinitionError, match=r"Odd \(odd\.v1\): a field of it has no JSON Schema: .*WithJsonSchema"):
        export([event_type(Odd)])


def test_a_default_that_is_no_json_is_left_out_in_silence():
    class Odd(Event, topic="odd.v2"):
        value: Any = Legacy()
        limit: float = inf

    assert export([event_type(Odd)])["events"]["odd.v2"]["schema"]["properties"] == {
        "value": {"title": "Value"},
        "limit": {"title": "Limit", "type": "number"},
    }


def test_fields_are_told_in_words():
    class Told(Event, topic="told.v1"):
        a: UUID
        b: list[Author] | None
        c: dict[str, int]
        d: tuple[int, str] = (1, "")
        e: Literal["x", 1] = 1
        f: Any = None
        g: set[datetime] = Field(default_factory=set)

    def fields(source: Any) -> list[tuple[str, str]]:
        kind = event_type(source)
        return list(fields_of(export([kind])["events"][kind.topic]))

    assert fields(Told) == [
        ("a", "text (uuid)"),
        ("b", "list of Author or null"),
        ("c", "map of integer"),
        ("d", "(integer, text), optional"),
        ("e", "'x' | 1, optional"),
        ("f", "anything, optional"),
        ("g", "set of text (date-time), optional"),
    ]
    assert fields(Tree) == [("below", "list of Tree, optional")]
    assert fields(ProtobufEvent(protobuf_class("Match", MATCH), topic="match.v1")) == [
        ("user_id", "string = 1"),
        ("skills", "repeated acme.v1.Match.Skill = 2"),
        ("levels", "map<string, acme.v1.Match.Level> = 3"),
        ("at", "optional google.protobuf.Timestamp = 5"),
        ("text", "optional string = 9"),
        ("code", "optional int64 = 10"),
        ("remote", "optional bool = 11"),
        ("place", "optional acme.v1.Place = 12"),
    ]
