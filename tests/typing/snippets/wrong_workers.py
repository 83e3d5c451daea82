"""Workers that are declared wrongly."""

from __future__ import annotations

from declared import Click, PostUpvoted, UserCreated, read_click, read_post, ticked
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import Context, Message, Notification, notifies, subscribes


@subscribes(PostUpvoted, subscription="wrong-type")  # error: UserCreated
def wrong_event(event: UserCreated, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-type")  # error: UserCreated
async def wrong_event_in_async(event: UserCreated, ctx: Context) -> None: ...


@subscribes(ticked, subscription="wrong-type")  # error: PostUpvoted
def wrong_protobuf(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(Timestamp, subscription="wrong-type", topic="clock.plain.v1")  # error: Message
def wrong_message(event: Message, ctx: Context) -> None: ...


@subscribes(Message, subscription="wrong-type", topic="anything.v1")  # error: bytes
def wrong_raw(message: bytes, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-type")  # error: PostUpvoted
def without_context(event: PostUpvoted) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-return")  # error: int
def returns_something(event: PostUpvoted, ctx: Context) -> int:
    return 1


@subscribes(Click, subscription="no-parser", topic="click.v1")  # error: Click
def without_parser(click: Click, ctx: Context) -> None: ...


@notifies(Click, subscription="no-parser", topic="click.v1")  # error: Click
def notifies_without_parser(click: Click, ctx: Context) -> None: ...


@subscribes(Click, subscription="wrong-parser", topic="click.v1", parse=read_post)  # error: PostUpvoted
def with_the_wrong_parser(click: Click, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-parser", parse=read_click)  # error: Click
def with_another_wrong_parser(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(ticked, subscription="wrong-parser", parse=read_click)  # error: Click
def with_a_wrong_parser_of_protobuf(event: Timestamp, ctx: Context) -> None: ...


@subscribes(Timestamp, subscription="no-topic")  # error: Timestamp
def without_topic(event: Timestamp, ctx: Context) -> None: ...


@subscribes(Message, subscription="no-topic")  # error: Message
def raw_without_topic(message: Message, ctx: Context) -> None: ...


@subscribes(Click, subscription="no-topic", parse=read_click)  # error: Click
def parsed_without_topic(click: Click, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="two-topics", topic="post.upvoted.v1")  # error: PostUpvoted
def with_a_second_topic(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(PostUpvoted)  # error: subscribes
def without_subscription(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-option", max_mesages=20)  # error: subscribes
def with_a_misspelt_option(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-option", max_attempts="5")  # error: subscribes
def with_an_option_of_the_wrong_type(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(PostUpvoted, subscription="wrong-option", on_poison="stop")  # error: subscribes
def with_an_unknown_policy(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes("post.upvoted.v1", subscription="no-type")  # error: subscribes
def with_a_name_for_a_type(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(PostUpvoted(post_id=1, author_id=UserCreated.user_id), subscription="no-type")  # error: subscribes
def with_an_event_for_a_type(event: PostUpvoted, ctx: Context) -> None: ...


@notifies(PostUpvoted, subscription="wrong-notification")  # error: str
def returns_text(event: PostUpvoted, ctx: Context) -> str:
    return "you were upvoted"


@notifies(PostUpvoted, subscription="wrong-notification")  # error: UserCreated
def returns_an_event(event: PostUpvoted, ctx: Context) -> UserCreated:
    return UserCreated(user_id=event.author_id)


@notifies(PostUpvoted, subscription="wrong-notification")  # error: list[dict[str, str]]
async def returns_dicts(event: PostUpvoted, ctx: Context) -> list[dict[str, str]]:
    return [{"type": "upvoted"}]


@notifies(PostUpvoted, subscription="wrong-type")  # error: UserCreated
def notifies_of_the_wrong_event(event: UserCreated, ctx: Context) -> Notification | None:
    return None
