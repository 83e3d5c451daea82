"""Publish: ids, what comes back, and the limits of https://cloud.google.com/pubsub/quotas#resource_limits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.pubsub_v1.types import PubsubMessage

LIMIT = 10_000_000


def test_each_message_gets_an_id_of_its_own_in_the_order_of_the_request(pubsub):
    topic, subscription = pubsub.pair()

    ids = pubsub.publish(topic, *(f"m{n}" for n in range(10)))

    assert len(set(ids)) == 10
    by_id = {one.message.message_id: one.message.data for one in pubsub.pull(subscription, 10)}
    assert by_id == {message_id: f"m{n}".encode() for n, message_id in enumerate(ids)}


def test_a_message_is_given_back_whole(pubsub):
    topic, subscription = pubsub.pair()
    data, attributes = bytes(range(256)), {"table": "public.user", "naïve": "ключ", "empty": ""}

    (message_id,) = pubsub.publish(topic, PubsubMessage(data=data, attributes=attributes, ordering_key="a/b"))

    (received,) = pubsub.pull(subscription, 1)
    expected = PubsubMessage(
        data=data,
        attributes=attributes,
        ordering_key="a/b",
        message_id=message_id,
        publish_time=received.message.publish_time,
    )
    assert received.message == expected
    assert received.message.publish_time is not None


def test_id_and_time_are_the_servers_and_not_the_publishers(pubsub):
    topic, subscription = pubsub.pair()
    long_ago = datetime(2001, 2, 3, tzinfo=UTC)

    ids = pubsub.publish(topic, PubsubMessage(data=b"x", message_id="mine", publish_time=long_ago))

    (received,) = pubsub.pull(subscription, 1)
    assert ids == [received.message.message_id] != ["mine"]
    assert received.message.publish_time.year > 2001


def test_each_subscription_gets_each_message(pubsub):
    topic = pubsub.topic()
    subscriptions = [pubsub.subscription(topic) for _ in range(3)]

    ids = pubsub.publish(topic, "a", "b")

    for subscription in subscriptions:
        assert sorted(one.message.message_id for one in pubsub.pull(subscription, 2)) == sorted(ids)


def test_a_subscription_gets_only_what_was_published_after_it_was_made(pubsub):
    topic = pubsub.topic()
    pubsub.publish(topic, "before")
    subscription = pubsub.subscription(topic)
    pubsub.publish(topic, "after")

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["after"]
    pubsub.gives_nothing(subscription)


def test_publishing_to_a_topic_that_is_not_there_is_not_found(pubsub):
    with pubsub.refuses("NOT_FOUND"):
        pubsub.publish(pubsub.name("topics"), "x")


def test_a_malformed_topic_is_refused(pubsub):
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish("no-such-form", "x")


def test_a_request_without_messages_is_refused(pubsub):
    topic = pubsub.topic()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish(topic)


def test_a_thousand_messages_are_taken(pubsub):
    topic, subscription = pubsub.pair()

    ids = pubsub.publish(topic, *(str(n) for n in range(1000)))

    assert sorted(one.message.message_id for one in pubsub.pull(subscription, 1000)) == sorted(ids)


def test_a_thousand_and_one_messages_are_refused(pubsub):
    topic = pubsub.topic()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish(topic, *(str(n) for n in range(1001)))


def test_nearly_ten_megabytes_are_taken(pubsub):
    topic, subscription = pubsub.pair()
    data = b"x" * (LIMIT - 2000)

    pubsub.publish(topic, PubsubMessage(data=data))

    (received,) = pubsub.pull(subscription, 1)
    assert received.message.data == data


@pytest.mark.parametrize("count", [1, 20])
def test_more_than_ten_megabytes_are_refused(pubsub, count):
    """10,000,000 bytes: "You passed request_size in the request, but the maximum value is 10000000"."""
    topic = pubsub.topic()
    message = PubsubMessage(data=b"x" * (LIMIT // count + 30_000))

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish(topic, *[message] * count)


GOOD = {
    "attributes-alone": PubsubMessage(attributes={"k": "v"}),
    "key-of-256-bytes": PubsubMessage(data=b"x", attributes={"k" * 256: "v"}),
    "value-of-1024-bytes": PubsubMessage(data=b"x", attributes={"k": "v" * 1024}),
    "100-attributes": PubsubMessage(data=b"x", attributes={f"k{n}": "v" for n in range(100)}),
    "ordering-key-of-1024-bytes": PubsubMessage(data=b"x", ordering_key="k" * 1024),
}
BAD = {
    "nothing": PubsubMessage(),
    "ordering-key-alone": PubsubMessage(ordering_key="k"),
    "key-of-257-bytes": PubsubMessage(data=b"x", attributes={"k" * 257: "v"}),
    "key-of-129-characters-in-258-bytes": PubsubMessage(data=b"x", attributes={"ф" * 129: "v"}),
    "value-of-1025-bytes": PubsubMessage(data=b"x", attributes={"k": "v" * 1025}),
    "value-of-513-characters-in-1026-bytes": PubsubMessage(data=b"x", attributes={"k": "ф" * 513}),
    "101-attributes": PubsubMessage(data=b"x", attributes={f"k{n}": "v" for n in range(101)}),
    "ordering-key-of-1025-bytes": PubsubMessage(data=b"x", ordering_key="k" * 1025),
    "ordering-key-of-513-characters-in-1026-bytes": PubsubMessage(data=b"x", ordering_key="ф" * 513),
}


@pytest.mark.parametrize("message", GOOD.values(), ids=GOOD)
def test_what_is_just_within_the_limits_is_taken(pubsub, message):
    topic, subscription = pubsub.pair()

    pubsub.publish(topic, message)

    (received,) = pubsub.pull(subscription, 1)
    assert (received.message.attributes, received.message.ordering_key) == (message.attributes, message.ordering_key)


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_what_is_beyond_the_limits_is_refused_and_so_is_what_came_with_it(pubsub, message):
    topic, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publish(topic, "good", message)

    pubsub.gives_nothing(subscription)
