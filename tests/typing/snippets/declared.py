"""What the other snippets speak of: one of each thing that can be declared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import Event, Message, ProtobufEvent, Row


class User(Row, table="public.user"):
    id: UUID
    username: str | None


class PostUpvoted(Event, topic="post.upvoted.v1", key="author_id"):
    post_id: int
    author_id: UUID


class UserCreated(Event, topic="user.created.v1"):
    user_id: UUID
    name: str = ""


ticked = ProtobufEvent(Timestamp, topic="clock.ticked.v1")
struck = ProtobufEvent(Struct, topic="clock.struck.v1", encoding="protobuf-json")


@dataclass(frozen=True)
class Click:
    x: int
    y: int


def read_click(message: Message) -> Click:
    return Click(**json.loads(message.data))


def read_post(message: Message) -> PostUpvoted:
    return PostUpvoted.model_validate_json(message.data)


def read_time(message: Message) -> Timestamp:
    return Timestamp.FromString(message.data)
