"""Every right way to declare a worker and to publish: no checker may say a word."""

from __future__ import annotations

from typing import assert_type
from uuid import UUID

from declared import Click, PostUpvoted, UserCreated, read_click, read_post, read_time, struck, ticked
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import (
    Context,
    EventPublisher,
    Message,
    Notification,
    Worker,
    notifies,
    publish,
    publish_async,
    subscribes,
)


@subscribes(PostUpvoted, subscription="post-upvoted-rep", max_messages=20, timeout=10, dead_letter="post.dead.v1")
def typed(event: PostUpvoted, ctx: Context) -> None:
    assert_type(event.author_id, UUID)
    ctx.publish(UserCreated(user_id=event.author_id, name="ada"), key=str(event.author_id))
    ctx.publish(ticked(Timestamp(seconds=1)))


@subscribes(PostUpvoted, subscription="post-upvoted-search", on_poison="park", group="search", dedicated=True)
async def asynchronous(event: PostUpvoted, ctx: Context) -> None:
    ctx.publish(struck(Struct()))


@subscribes(PostUpvoted, subscription="post-upvoted-own", parse=read_post)
def with_a_parser(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(ticked, subscription="clock-ticked")
def bound_protobuf(event: Timestamp, ctx: Context) -> None:
    assert_type(event.seconds, int)


@subscribes(ticked, subscription="clock-ticked-own", parse=read_time)
def bound_protobuf_with_a_parser(event: Timestamp, ctx: Context) -> None: ...


@subscribes(Timestamp, subscription="clock-plain", topic="clock.plain.v1")
def protobuf(event: Timestamp, ctx: Context) -> None: ...


@subscribes(Timestamp, subscription="clock-parsed", topic="clock.plain.v1", parse=read_time)
async def protobuf_with_a_parser(event: Timestamp, ctx: Context) -> None: ...


@subscribes(Message, subscription="anything-raw", topic="anything.v1")
def raw(message: Message, ctx: Context) -> None:
    assert_type(message.data, bytes)


@subscribes(Click, subscription="clicks", topic="click.v1", parse=read_click)
def parsed(click: Click, ctx: Context) -> None: ...


@subscribes(dict, subscription="clicks-plain", topic="click.v1", parse=lambda message: {"x": len(message.data)})
def parsed_by_a_lambda(click: dict[str, int], ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="post-upvoted-any")
def of_a_wider_type(event: object, ctx: Context) -> None: ...


@notifies(PostUpvoted, subscription="post-upvoted-mail")
def notification(event: PostUpvoted, ctx: Context) -> Notification:
    return Notification(type="upvoted", recipients=(str(event.author_id),))


@notifies(PostUpvoted, subscription="post-upvoted-mails")
def notifications(event: PostUpvoted, ctx: Context) -> list[Notification]:
    return [Notification(type="upvoted", recipients=(str(event.author_id),), dedupe_key="a", context={"n": 1})]


@notifies(ticked, subscription="clock-ticked-mail")
async def perhaps_a_notification(event: Timestamp, ctx: Context) -> Notification | None:
    return None


@notifies(Timestamp, subscription="clock-plain-mail", topic="clock.plain.v1")
def notification_of_protobuf(event: Timestamp, ctx: Context) -> tuple[Notification, ...]:
    return ()


@notifies(Click, subscription="clicks-mail", topic="click.v1", parse=read_click)
def notification_of_parsed(event: Click, ctx: Context) -> None:
    return None


async def publishes_outside_the_daemon(publisher: EventPublisher, ada: UUID) -> None:
    assert_type(publish(UserCreated(user_id=ada), key="ada", cause="request-7"), str)
    assert_type(await publish_async(ticked(Timestamp())), str)
    assert_type(publisher.publish(struck(Struct())), str)
    assert_type(await publisher.publish_async(UserCreated(user_id=ada)), str)
    assert_type(publisher.send(UserCreated(user_id=ada)).result(), str)


assert_type(typed, Worker[PostUpvoted])
assert_type(asynchronous, Worker[PostUpvoted])
assert_type(protobuf, Worker[Timestamp])
assert_type(bound_protobuf, Worker[Timestamp])
assert_type(raw, Worker[Message])
assert_type(parsed, Worker[Click])
assert_type(notification, Worker[PostUpvoted])
