"""The broker's own dead letters: https://cloud.google.com/pubsub/docs/handling-failures."""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import PubsubMessage, Subscription


@pytest.fixture
def policy(pubsub):
    """A dead letter topic with a subscription: the policy, and the subscription's name."""
    topic, subscription = pubsub.pair()
    return {"dead_letter_topic": topic, "max_delivery_attempts": 5}, subscription


def test_attempts_are_counted_and_after_the_last_the_message_is_forwarded(pubsub, policy):
    policy, dead = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, PubsubMessage(data=b"poison", attributes={"table": "public.user"}))

    attempts = []
    for _ in range(5):
        (received,) = pubsub.pull(subscription, 1)
        attempts.append(received.delivery_attempt)
        pubsub.nack(subscription, received)

    assert attempts == [1, 2, 3, 4, 5]
    # First this, for the emulator forwards when it finds nothing else to give.
    pubsub.gives_nothing(subscription)
    (forwarded,) = pubsub.pull(dead, 1)
    assert forwarded.message.data == b"poison"
    assert forwarded.message.attributes["table"] == "public.user"


def test_a_dead_letter_says_where_it_comes_from(pubsub, policy):
    policy, dead = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, "poison")
    for _ in range(5):
        pubsub.nack(subscription, *pubsub.pull(subscription, 1))
    pubsub.gives_nothing(subscription)

    (forwarded,) = pubsub.pull(dead, 1)

    attributes = dict(forwarded.message.attributes)
    published = attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime")
    assert published[:2] == "20"
    assert attributes == {
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": subscription.rsplit("/", 1)[1],
        "CloudPubSubDeadLetterSourceSubscriptionProject": subscription.split("/")[1],
    }


def test_an_ack_in_time_forwards_nothing(pubsub, policy):
    policy, dead = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, "recovers")
    for _ in range(4):
        pubsub.nack(subscription, *pubsub.pull(subscription, 1))

    pubsub.ack(subscription, *pubsub.pull(subscription, 1))

    pubsub.gives_nothing(subscription)
    pubsub.gives_nothing(dead)


@pytest.mark.slow_clock
def test_an_expired_deadline_is_an_attempt(pubsub, policy):
    policy, _ = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, "slow")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.extend(subscription, first, seconds=1)

    (again,) = pubsub.pull(subscription, 1, within=3)

    assert (first.delivery_attempt, again.delivery_attempt) == (1, 2)


def test_attempts_are_counted_on_streams_too(pubsub, policy):
    policy, dead = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "poison")

    attempts = []
    for _ in range(5):
        (received,) = stream.receive(1)
        attempts.append(received.delivery_attempt)
        stream.send(modify_deadline_ack_ids=[received.ack_id], modify_deadline_seconds=[0])

    assert attempts == [1, 2, 3, 4, 5]
    assert pubsub.texts(pubsub.pull(dead, 1)) == ["poison"]
    stream.stays_quiet()


def test_one_poisoned_message_leaves_the_others(pubsub, policy):
    policy, dead = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, "poison", "good")
    left = {"good"}
    for _ in range(20):
        for received in pubsub.pull_now(subscription, 2):
            if received.message.data == b"good":
                pubsub.ack(subscription, received)
                left.clear()
            else:
                pubsub.nack(subscription, received)

    assert left == set()
    assert pubsub.texts(pubsub.pull(dead, 1)) == ["poison"]


def test_attempts_are_not_counted_any_more_when_the_policy_is_gone(pubsub, policy):
    policy, _ = policy
    topic, subscription = pubsub.pair(dead_letter_policy=policy)
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    mask = {"paths": ["dead_letter_policy"]}

    pubsub.subscriber.update_subscription({"subscription": Subscription(name=subscription), "update_mask": mask})
    pubsub.nack(subscription, first)

    (again,) = pubsub.pull(subscription, 1)
    assert (first.delivery_attempt, again.delivery_attempt) == (1, 0)


def test_a_dead_letter_topic_that_is_not_there_is_not_found(pubsub):
    topic = pubsub.topic()

    with pubsub.refuses("NOT_FOUND"):
        pubsub.subscription(topic, dead_letter_policy={"dead_letter_topic": pubsub.name("topics")})
