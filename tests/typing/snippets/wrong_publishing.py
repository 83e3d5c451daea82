"""Publishing what is no event, and events that are built wrongly."""

from __future__ import annotations

from uuid import UUID

from declared import PostUpvoted, User, UserCreated, ticked
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import Context, EventPublisher, Notification, ProtobufEvent, publish, publish_async


def by_context(ctx: Context, user: User) -> None:
    ctx.publish({"user_id": "1"})  # error: dict[str, str]
    ctx.publish(user)  # error: User
    ctx.publish(Timestamp())  # error: Timestamp
    ctx.publish("user.created.v1")  # error: publish
    ctx.publish(UserCreated)  # error: type[UserCreated]
    ctx.publish(ticked)  # error: ProtobufEvent[Timestamp]
    ctx.publish(UserCreated(user_id=user.id), key=user.id)  # error: key
    ctx.publish([UserCreated(user_id=user.id)])  # error: list[UserCreated]


async def outside_the_daemon(publisher: EventPublisher, user: User) -> None:
    publish({"user_id": "1"})  # error: dict[str, str]
    publish(user)  # error: User
    publish(UserCreated(user_id=user.id), key=user.id)  # error: key
    await publish_async(Timestamp())  # error: Timestamp
    publisher.publish("user.created.v1")  # error: publish
    publisher.publish(Timestamp())  # error: Timestamp
    publisher.send(user)  # error: User
    await publisher.publish_async({"user_id": "1"})  # error: dict[str, str]


def built_wrongly(ada: UUID) -> None:
    UserCreated(user=ada)  # error: user
    UserCreated()  # error: user_id
    UserCreated(user_id=ada, name=1)  # error: name
    PostUpvoted(post_id=1, author_id=ada, voter_id=ada)  # error: voter_id
    Notification(type="upvoted", recipient="ada")  # error: recipient
    Notification(recipients=("ada",))  # error: type
    ticked(Struct())  # error: Struct
    ProtobufEvent(UserCreated, topic="user.created.v1")  # error: UserCreated
    ProtobufEvent(Timestamp)  # error: topic


def read_wrongly(event: PostUpvoted) -> UUID:
    return event.voter_id  # error: voter_id
