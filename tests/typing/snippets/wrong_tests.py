"""Tests that send a worker what it never gets."""

from __future__ import annotations

from typing import assert_type
from uuid import UUID

from declared import PostUpvoted, UserCreated, ticked
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor import Context, Message, Notification, subscribes
from cdc_reactor.testing import (
    ExpectsAck,
    ExpectsFailure,
    Harness,
    assert_registered,
    expect_acked,
    expect_dead_lettered,
    expect_nacked,
)


@subscribes(PostUpvoted, subscription="post-upvoted-rep")
def add_reputation(event: PostUpvoted, ctx: Context) -> None: ...


@subscribes(ticked, subscription="clock-ticked")
def tick(time: Timestamp, ctx: Context) -> None: ...


def right(ada: UUID) -> None:
    expect_acked(add_reputation, PostUpvoted(post_id=1, author_id=ada), key="a")
    expect_nacked(add_reputation, b"{}")
    expect_dead_lettered(add_reputation, Message(b"{"), match="not JSON")
    expect_acked(tick, Timestamp(seconds=1))
    expect_acked(tick, ticked(Timestamp(seconds=1)))
    run = Harness(add_reputation, tick).publish(ticked(Timestamp())).message(tick, b"").run()
    assert_type(run.notifications, list[Notification])
    assert_registered(add_reputation)


def wrong(ada: UUID) -> None:
    expect_acked(add_reputation, UserCreated(user_id=ada))  # error: expect_acked
    expect_nacked(add_reputation, {"post_id": 1})  # error: expect_nacked
    expect_dead_lettered(tick, Struct())  # error: expect_dead_lettered
    expect_acked(add_reputation, b"", keys="a")  # error: keys
    Harness(add_reputation).publish(Timestamp())  # error: Timestamp
    Harness(right)  # error: Handler
    assert_registered(right)  # error: assert_registered


def by_fixtures(accepts: ExpectsAck, fails: ExpectsFailure, ada: UUID) -> None:
    accepts(add_reputation, PostUpvoted(post_id=1, author_id=ada))
    fails(tick, Timestamp(), match="late")
    accepts(add_reputation, UserCreated(user_id=ada))  # error: T
    accepts(add_reputation, b"", match="late")  # error: match
    fails(tick, Struct())  # error: T
