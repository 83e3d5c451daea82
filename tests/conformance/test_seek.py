"""Snapshots and Seek: https://cloud.google.com/pubsub/docs/replay-overview."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.pubsub_v1.types import Snapshot

DAY = 86_400


@pytest.fixture
def snapshot(pubsub):
    def snapshot(subscription, **fields):
        request = {"name": pubsub.name("snapshots"), "subscription": subscription, **fields}
        return pubsub.subscriber.create_snapshot(request).name

    return snapshot


@pytest.fixture
def seek(pubsub):
    return lambda subscription, **target: pubsub.subscriber.seek({"subscription": subscription, **target})


def test_a_snapshot_is_given_back_as_it_was_made(pubsub, snapshot):
    topic, subscription = pubsub.pair()

    name = snapshot(subscription, labels={"why": "before the release"})

    found = pubsub.subscriber.get_snapshot({"snapshot": name})
    assert (found.name, found.topic, dict(found.labels)) == (name, topic, {"why": "before the release"})


def test_a_snapshot_of_an_empty_backlog_lives_for_a_week(pubsub, snapshot):
    _, subscription = pubsub.pair()
    before = pubsub.instant()

    name = snapshot(subscription)

    expires = pubsub.subscriber.get_snapshot({"snapshot": name}).expire_time
    assert abs((expires - before) - timedelta(days=7)) < timedelta(minutes=5)


def test_a_snapshot_without_a_name_gets_one(pubsub):
    _, subscription = pubsub.pair()

    made = pubsub.subscriber.create_snapshot({"subscription": subscription})

    assert made.name.startswith(f"{pubsub.project}/snapshots/")
    pubsub.subscriber.delete_snapshot({"snapshot": made.name})


def test_a_name_is_taken_once(pubsub, snapshot):
    _, subscription = pubsub.pair()
    name = snapshot(subscription)

    with pubsub.refuses("ALREADY_EXISTS"):
        pubsub.subscriber.create_snapshot({"name": name, "subscription": subscription})


def test_a_snapshot_of_a_subscription_that_is_not_there_is_not_found(pubsub, snapshot):
    with pubsub.refuses("NOT_FOUND"):
        snapshot(pubsub.name("subscriptions"))


@pytest.mark.parametrize("call", ["get_snapshot", "delete_snapshot"])
def test_a_snapshot_that_is_not_there_is_not_found(pubsub, call):
    with pubsub.refuses("NOT_FOUND"):
        getattr(pubsub.subscriber, call)({"snapshot": pubsub.name("snapshots")})


def test_a_project_lists_its_snapshots_in_pages(pubsub, snapshot):
    _, subscription = pubsub.pair()
    names = [snapshot(subscription) for _ in range(3)]

    pages = pubsub.subscriber.list_snapshots({"project": pubsub.project, "page_size": 2})

    assert len(pages.snapshots) <= 2
    assert sorted(one.name for one in pages if one.name in names) == sorted(names)


def test_an_update_replaces_the_labels(pubsub, snapshot):
    _, subscription = pubsub.pair()
    name = snapshot(subscription, labels={"a": "1", "b": "2"})
    changed = Snapshot(name=name, labels={"c": "3"})

    pubsub.subscriber.update_snapshot({"snapshot": changed, "update_mask": {"paths": ["labels"]}})

    assert dict(pubsub.subscriber.get_snapshot({"snapshot": name}).labels) == {"c": "3"}


@pytest.mark.parametrize("paths", [[], ["colour"], ["topic"]], ids=["none", "unknown", "topic"])
def test_an_update_without_a_field_that_may_change_is_refused(pubsub, snapshot, paths):
    _, subscription = pubsub.pair()
    name = snapshot(subscription)

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.subscriber.update_snapshot({"snapshot": Snapshot(name=name), "update_mask": {"paths": paths}})


def test_seeking_a_snapshot_brings_back_what_was_not_acked_then_and_all_that_came_after(pubsub, snapshot, seek):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "acked before", "not acked")
    before, other = sorted(pubsub.pull(subscription, 2), key=lambda one: one.message.data)
    pubsub.ack(subscription, before)
    name = snapshot(subscription)
    pubsub.ack(subscription, other)
    pubsub.publish(topic, "acked after", "waits")
    pubsub.ack(subscription, *pubsub.pull(subscription, 2))

    seek(subscription, snapshot=name)

    assert sorted(pubsub.texts(pubsub.pull(subscription, 3))) == ["acked after", "not acked", "waits"]
    pubsub.gives_nothing(subscription)


def test_a_snapshot_can_be_sought_again_and_again(pubsub, snapshot, seek):
    topic, subscription = pubsub.pair()
    name = snapshot(subscription)
    pubsub.publish(topic, "a", "b")

    for _ in range(3):
        seek(subscription, snapshot=name)
        received = pubsub.pull(subscription, 2)
        pubsub.ack(subscription, *received)
        assert sorted(pubsub.texts(received)) == ["a", "b"]

    pubsub.gives_nothing(subscription)


def test_another_subscription_of_the_topic_can_take_over_a_snapshot(pubsub, snapshot, seek):
    topic, one = pubsub.pair()
    other = pubsub.subscription(topic)
    pubsub.publish(topic, "a", "b")
    received = {item.message.data: item for item in pubsub.pull(one, 2)}
    pubsub.ack(one, received[b"a"])
    name = snapshot(one)

    seek(other, snapshot=name)

    assert pubsub.texts(pubsub.pull(other, 1)) == ["b"]
    pubsub.gives_nothing(other)


def test_a_snapshot_of_another_topic_is_refused(pubsub, snapshot, seek):
    """ "The snapshot's topic must be the same as that of the provided subscription"; it does not say the status."""
    _, subscription = pubsub.pair()
    _, stranger = pubsub.pair()
    name = snapshot(stranger)

    with pubsub.refuses("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
        seek(subscription, snapshot=name)


def test_seeking_the_future_acks_everything(pubsub, seek):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")

    seek(subscription, time=pubsub.instant() + timedelta(days=1))

    pubsub.gives_nothing(subscription)


def test_seeking_a_time_acks_what_was_published_before_it(pubsub, seek):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "before")
    time = pubsub.instant()
    pubsub.publish(topic, "after")

    seek(subscription, time=time)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["after"]
    pubsub.gives_nothing(subscription)


def test_seeking_a_time_brings_back_acked_messages_that_are_retained(pubsub, seek):
    topic, subscription = pubsub.pair(retain_acked_messages=True)
    pubsub.publish(topic, "before")
    time = pubsub.instant()
    pubsub.publish(topic, "after")
    pubsub.ack(subscription, *pubsub.pull(subscription, 2))

    seek(subscription, time=time)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["after"]
    pubsub.gives_nothing(subscription)


def test_seeking_a_time_brings_no_acked_message_back_that_is_not_retained(pubsub, seek):
    topic, subscription = pubsub.pair()
    time = pubsub.instant()
    pubsub.publish(topic, "acked", "leased")
    acked, leased = sorted(pubsub.pull(subscription, 2), key=lambda one: one.message.data)
    pubsub.ack(subscription, acked)

    seek(subscription, time=time)
    pubsub.nack(subscription, leased)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["leased"]
    pubsub.gives_nothing(subscription)


def test_a_topic_that_retains_messages_gives_them_to_a_subscription_made_later(pubsub, seek):
    topic = pubsub.topic(message_retention_duration={"seconds": 3600})
    time = pubsub.instant()
    pubsub.publish(topic, "a", "b")
    subscription = pubsub.subscription(topic)

    seek(subscription, time=time)

    assert sorted(pubsub.texts(pubsub.pull(subscription, 2))) == ["a", "b"]


def test_what_a_seek_brings_back_comes_in_order(pubsub, seek):
    topic, subscription = pubsub.pair(retain_acked_messages=True, enable_message_ordering=True)
    time = pubsub.instant()
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, *(f"a{n}" for n in range(8)))
    pubsub.ack(subscription, *stream.receive(8))

    seek(subscription, time=time)

    assert pubsub.texts(stream.receive(8)) == [f"a{n}" for n in range(8)]


def test_seeking_nowhere_is_refused(pubsub, seek):
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        seek(subscription)


def test_seeking_what_is_not_there_is_not_found(pubsub, seek):
    _, subscription = pubsub.pair()
    time = pubsub.instant()

    with pubsub.refuses("NOT_FOUND"):
        seek(subscription, snapshot=pubsub.name("snapshots"))
    with pubsub.refuses("NOT_FOUND"):
        seek(pubsub.name("subscriptions"), time=time)


@pytest.mark.virtual_clock("it takes days")
def test_a_snapshot_lives_a_week_less_the_age_of_its_oldest_message(pubsub, snapshot):
    topic, subscription = pubsub.pair()
    published = pubsub.instant()
    pubsub.publish(topic, "old")
    pubsub.pass_time(3 * DAY)
    name = snapshot(subscription)

    expires = pubsub.subscriber.get_snapshot({"snapshot": name}).expire_time

    assert abs((expires - published) - timedelta(days=7)) < timedelta(minutes=1)
    pubsub.pass_time(4 * DAY + 60)
    with pubsub.refuses("NOT_FOUND"):
        pubsub.subscriber.get_snapshot({"snapshot": name})


@pytest.mark.virtual_clock("it takes a week")
def test_a_snapshot_that_would_live_less_than_an_hour_is_refused(pubsub, snapshot):
    topic, subscription = pubsub.pair(message_retention_duration={"seconds": 31 * DAY})
    pubsub.publish(topic, "old")

    pubsub.pass_time(7 * DAY - 1800)

    with pubsub.refuses("FAILED_PRECONDITION"):
        snapshot(subscription)


@pytest.mark.virtual_clock("a topic keeps messages for ten minutes at least")
def test_a_topic_retains_no_message_longer_than_it_says(pubsub, seek):
    topic = pubsub.topic(message_retention_duration={"seconds": 600})
    time = pubsub.instant()
    pubsub.publish(topic, "old")
    pubsub.pass_time(540)
    pubsub.publish(topic, "young")
    pubsub.pass_time(120)
    subscription = pubsub.subscription(topic)

    seek(subscription, time=time)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["young"]
    pubsub.gives_nothing(subscription)


@pytest.mark.virtual_clock("a subscription keeps messages for ten minutes at least")
def test_acked_messages_are_retained_no_longer_than_the_subscription_says(pubsub, seek):
    topic, subscription = pubsub.pair(retain_acked_messages=True, message_retention_duration={"seconds": 600})
    time = pubsub.instant()
    pubsub.publish(topic, "old")
    pubsub.pass_time(540)
    pubsub.publish(topic, "young")
    pubsub.ack(subscription, *pubsub.pull(subscription, 2))
    pubsub.pass_time(120)

    seek(subscription, time=time)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["young"]
    pubsub.gives_nothing(subscription)
