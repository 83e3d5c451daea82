"""Generated workers: names, subscriptions and texts. That every tool is content with them: test_cli_new."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cdc_reactor.errors import UsageError
from cdc_reactor.event_scaffold import NewEvent, read_fields
from cdc_reactor.events import Event, ProtobufEvent, event_type
from cdc_reactor.worker_scaffold import (
    EventSource,
    NewWorker,
    check_name,
    check_subscription,
    declared_elsewhere,
    declared_here,
    default_name,
    default_subscription,
    untouched,
    write_worker,
)


class PostUpvoted(Event, topic="scaffolded.post.upvoted.v1"):
    post_id: int
    voter_id: int
    note: str | None = None


class Unguessable(Event, topic="scaffolded.unguessable.v1"):
    number: complex


def worker(**options) -> NewWorker:
    return NewWorker("add_reputation", "rep", "workers.add_reputation", frozenset({"workers", "tests"}), **options)


@pytest.mark.parametrize(
    ("topic", "name", "subscription"),
    [
        ("post.upvoted.v1", "add_reputation", "post-upvoted-add-reputation"),
        ("post.upvoted.v2", "add_reputation", "post-upvoted-v2-add-reputation"),
        ("post.upvoted.v1", default_name("post.upvoted.v1"), "on-post-upvoted"),
    ],
)
def test_a_subscription_is_named_for_its_topic_and_its_worker(topic, name, subscription):
    assert default_subscription(topic, name) == subscription


@pytest.mark.parametrize(
    "name",
    ["class", "print", "addReputation", "add-reputation", "größe", "test_it", "its_test", "conftest", "_hidden", "1st", "subscribes", "event", "a" * 61],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused(name):
    with pytest.raises(UsageError, match=f"^--name {name}: .*choose a(nother|\\sshorter one)"):
        check_name(name)


def test_names_that_can_be_are_taken():
    check_name("add_reputation")
    check_name("match")
    check_subscription("post-upvoted-add-reputation")


@pytest.mark.parametrize("subscription", ["a", "goog-ish", "with space", "a" * 91])
def test_a_subscription_that_cannot_be_is_refused(subscription):
    with pytest.raises(UsageError, match="--subscription"):
        check_subscription(subscription)


def test_a_worker_of_a_declared_event_imports_it():
    source = declared_elsewhere(event_type(PostUpvoted))

    sources = write_worker(worker(), source)

    assert sources.worker == (
        '"""Reacts to scaffolded.post.upvoted.v1: says which message came, for a start."""\n\n'
        "from cdc_reactor import Context, subscribes\n\n"
        f"from {__name__} import PostUpvoted\n\n\n"
        '@subscribes(PostUpvoted, subscription="rep")\n'
        "def add_reputation(event: PostUpvoted, ctx: Context) -> None:\n"
        '    """Say what came."""\n'
        '    ctx.log.info("scaffolded.post.upvoted.v1: post_id=%s voter_id=%s", event.post_id, event.voter_id)\n'
    )
    assert sources.test == (
        '"""The worker add_reputation, run without any broker."""\n\n'
        "from collections.abc import Callable\n\n"
        "from cdc_reactor.testing import Run\n\n"
        f"from {__name__} import PostUpvoted\n"
        "from workers.add_reputation import add_reputation\n\n\n"
        "def test_add_reputation_takes_a_scaffolded_post_upvoted(expect_acked: Callable[..., Run]) -> None:\n"
        '    """It takes what its topic carries."""\n'
        "    expect_acked(add_reputation, PostUpvoted(post_id=1, voter_id=1))\n"
    )


def test_a_worker_of_a_new_event_declares_it():
    source = declared_here(NewEvent("user.left.v1", read_fields(["user:UUID"])), "workers.add_reputation")

    sources = write_worker(worker(is_async=True, notifies=True), source)

    assert sources.worker == (
        '"""Reacts to user.left.v1: says which message came, for a start."""\n\n'
        "from uuid import UUID\n\n"
        "from cdc_reactor import Context, Event, Notification, notifies\n\n\n"
        'class UserLeft(Event, topic="user.left.v1"):\n'
        '    """Say here what has happened when this is published."""\n\n'
        "    user: UUID\n\n\n"
        '@notifies(UserLeft, subscription="rep")\n'
        "async def add_reputation(event: UserLeft, ctx: Context) -> list[Notification]:\n"
        '    """Return what people are to be told: nobody anything, for a start."""\n'
        '    ctx.log.info("user.left.v1: %s in message %s", type(event).__name__, ctx.message.message_id)\n'
        "    return []\n"
    )
    assert "from workers.add_reputation import UserLeft, add_reputation\n" in sources.test
    assert sources.test.endswith("    expect_acked(add_reputation, UserLeft(user=UUID(int=1)))\n")


def test_a_raw_worker_takes_the_message():
    sources = write_worker(worker(), untouched("old.%things%"))

    assert '@subscribes(Message, subscription="rep", topic="old.%things%")\n' in sources.worker
    assert '    ctx.log.info("old.%%things%%: message %s", message.message_id)\n' in sources.worker
    assert '    expect_acked(add_reputation, Message(b"anything", message_id="1"))\n' in sources.test


def test_an_event_that_nobody_can_make_leaves_its_test_to_a_person():
    sources = write_worker(worker(), declared_elsewhere(event_type(Unguessable)))

    assert sources.test.endswith(
        "def test_add_reputation_takes_a_scaffolded_unguessable() -> None:\n"
        '    """It takes what its topic carries."""\n'
        "    # Nobody could guess a value of it: make one here, and hand it to the fixture `expect_acked`.\n"
        '    assert add_reputation.topic == "scaffolded.unguessable.v1"\n'
    )


def test_a_protobuf_class_is_taken_by_the_value_that_binds_it_or_by_itself():
    kind = event_type(ProtobufEvent(Timestamp, topic="scaffolded.ticked.v1"))
    home = "google.protobuf.timestamp_pb2"

    bound = declared_elsewhere(kind, ("ticked", "clocks.facts"))
    bare = declared_elsewhere(kind)

    assert bound.sample is not None
    assert bare.sample is not None
    assert (bound.given, bound.annotation, bound.sample.text) == ("ticked", "Timestamp", "ticked(Timestamp())")
    assert bound == EventSource(
        "scaffolded.ticked.v1", "ticked", "Timestamp", {"Timestamp": home, "ticked": "clocks.facts"}, bound.sample
    )
    assert bare.sample.text == 'ProtobufEvent(Timestamp, topic="scaffolded.ticked.v1")(Timestamp())'
    assert bare == EventSource(
        "scaffolded.ticked.v1", "Timestamp", "Timestamp", {"Timestamp": home}, bare.sample, needs_topic=True
    )
