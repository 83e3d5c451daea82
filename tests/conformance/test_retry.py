"""The retry policy: https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff."""

from __future__ import annotations

import pytest


def policy(shortest, longest):
    return {"minimum_backoff": {"seconds": shortest}, "maximum_backoff": {"seconds": longest}}


@pytest.mark.slow_clock
def test_a_nacked_message_waits_for_its_backoff(pubsub):
    topic, subscription = pubsub.pair(retry_policy=policy(2, 2))
    pubsub.publish(topic, "a")

    pubsub.nack(subscription, *pubsub.pull(subscription, 1))

    pubsub.gives_nothing(subscription, seconds=1)
    assert pubsub.texts(pubsub.pull(subscription, 1, within=5)) == ["a"]


def test_without_a_policy_a_nacked_message_does_not_wait(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")

    pubsub.nack(subscription, *pubsub.pull(subscription, 1))

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


def test_a_message_that_waits_holds_up_no_other(pubsub):
    topic, subscription = pubsub.pair(retry_policy=policy(60, 60))
    pubsub.publish(topic, "a")
    pubsub.nack(subscription, *pubsub.pull(subscription, 1))

    pubsub.publish(topic, "b")

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["b"]
    pubsub.gives_nothing(subscription)


@pytest.mark.virtual_clock("it takes minutes")
def test_the_backoff_grows_from_its_minimum_to_its_maximum(pubsub):
    topic, subscription = pubsub.pair(retry_policy=policy(10, 60), ack_deadline_seconds=600)
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)

    waits = []
    for _ in range(8):
        pubsub.nack(subscription, received)
        waited = 0
        while not (again := pubsub.pull_now(subscription, 1)):
            pubsub.pass_time(1)
            waited += 1
        (received,) = again
        waits.append(waited)

    # The service puts some noise on each delay; it says only the bounds and that delays grow exponentially.
    assert all(9 <= waited <= 61 for waited in waits), waits
    assert waits[0] < waits[-1]
    assert waits[-1] >= 50, waits


@pytest.mark.virtual_clock("it takes half a minute")
def test_an_expired_deadline_backs_off_too(pubsub):
    """A policy "will be triggered on NACKs or acknowledgment deadline exceeded events" (google/pubsub/v1/pubsub.proto)."""
    topic, subscription = pubsub.pair(retry_policy=policy(20, 60))
    pubsub.publish(topic, "a")
    pubsub.pull(subscription, 1)

    pubsub.pass_time(11)

    pubsub.gives_nothing(subscription)
    pubsub.gives_nothing(subscription, seconds=15)
    assert pubsub.texts(pubsub.pull(subscription, 1, within=30)) == ["a"]


@pytest.mark.slow_clock
def test_a_key_in_backoff_keeps_its_order(pubsub):
    topic, subscription = pubsub.pair(retry_policy=policy(1, 1), enable_message_ordering=True)
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2")
    first, _ = stream.receive(2)

    pubsub.nack(subscription, first)
    pubsub.publish_keyed(topic, "a3")
    stream.stays_quiet()
    pubsub.pass_time(3)

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]
