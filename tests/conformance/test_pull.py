"""Unary Pull, Acknowledge and ModifyAckDeadline: leases of deliveries."""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import Subscription


def test_an_acked_message_does_not_come_again(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")
    received = {one.message.data: one for one in pubsub.pull(subscription, 2)}

    pubsub.ack(subscription, received[b"a"])
    pubsub.nack(subscription, *received.values())

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["b"]
    pubsub.gives_nothing(subscription)


def test_a_leased_message_does_not_come_again(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    pubsub.pull(subscription, 1)

    pubsub.gives_nothing(subscription)


def test_a_nacked_message_comes_again_at_once_with_a_new_ack_id(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")

    deliveries = []
    for _ in range(5):
        (received,) = pubsub.pull(subscription, 1)
        deliveries.append(received)
        pubsub.nack(subscription, received)

    assert len({one.ack_id for one in deliveries}) == 5
    assert [one.message for one in deliveries] == [deliveries[0].message] * 5
    assert [one.delivery_attempt for one in deliveries] == [0] * 5


def test_ack_ids_of_two_subscriptions_have_nothing_in_common(pubsub):
    topic = pubsub.topic()
    one, other = pubsub.subscription(topic), pubsub.subscription(topic)
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(one, 1)

    pubsub.ack(one, received)

    assert pubsub.texts(pubsub.pull(other, 1)) == ["a"]


@pytest.mark.slow_clock
def test_a_message_whose_deadline_has_passed_comes_again(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)

    pubsub.extend(subscription, first, seconds=1)

    (again,) = pubsub.pull(subscription, 1, within=3)
    assert (again.message, again.ack_id != first.ack_id) == (first.message, True)


@pytest.mark.virtual_clock("to the second")
def test_the_subscriptions_deadline_is_kept_to_the_second(pubsub):
    topic, subscription = pubsub.pair(ack_deadline_seconds=45)
    pubsub.publish(topic, "a")
    pubsub.pull(subscription, 1)

    pubsub.pass_time(44)
    pubsub.gives_nothing(subscription)
    pubsub.pass_time(2)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


@pytest.mark.virtual_clock("to the second")
def test_a_new_deadline_of_the_subscription_is_for_the_deliveries_that_follow(pubsub):
    topic, subscription = pubsub.pair(ack_deadline_seconds=20)
    changed = Subscription(name=subscription, ack_deadline_seconds=100)
    pubsub.publish(topic, "a")
    pubsub.pull(subscription, 1)

    mask = {"paths": ["ack_deadline_seconds"]}
    pubsub.subscriber.update_subscription({"subscription": changed, "update_mask": mask})

    pubsub.pass_time(21)
    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]
    pubsub.pass_time(99)
    pubsub.gives_nothing(subscription)
    pubsub.pass_time(2)
    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


@pytest.mark.slow_clock
def test_the_subscriptions_deadline_passes(pubsub):
    topic, subscription = pubsub.pair(ack_deadline_seconds=10)
    pubsub.publish(topic, "a")
    pubsub.pull(subscription, 1)

    pubsub.gives_nothing(subscription, seconds=8)

    assert pubsub.texts(pubsub.pull(subscription, 1, within=6)) == ["a"]


@pytest.mark.slow_clock
def test_a_deadline_counts_from_when_it_was_set(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)
    pubsub.extend(subscription, received, seconds=1)

    pubsub.extend(subscription, received, seconds=60)

    pubsub.gives_nothing(subscription, seconds=3)
    pubsub.extend(subscription, received, seconds=0)
    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


@pytest.mark.slow_clock
def test_an_ack_after_the_deadline_is_ok_and_so_is_a_new_deadline(pubsub):
    """Without exactly-once delivery these requests return OK (https://cloud.google.com/pubsub/docs/exactly-once-delivery)."""
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.extend(subscription, first, seconds=1)
    (again,) = pubsub.pull(subscription, 1, within=3)

    pubsub.extend(subscription, first, seconds=60)
    pubsub.ack(subscription, first)

    pubsub.ack(subscription, again)
    pubsub.gives_nothing(subscription)


def test_an_ack_twice_is_ok(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)

    pubsub.ack(subscription, received)
    pubsub.ack(subscription, received)
    pubsub.nack(subscription, received)

    pubsub.gives_nothing(subscription)


def test_an_ack_id_that_never_was_one_is_refused(pubsub):
    """ "You have passed an invalid ack ID to the service"."""
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.subscriber.acknowledge({"subscription": subscription, "ack_ids": ["no ack id"]})
    with pubsub.refuses("INVALID_ARGUMENT"):
        request = {"subscription": subscription, "ack_ids": ["no ack id"], "ack_deadline_seconds": 10}
        pubsub.subscriber.modify_ack_deadline(request)


def test_an_ack_of_nothing_is_refused(pubsub):
    """ "You have not specified an ack ID in the request" (https://github.com/googleapis/nodejs-pubsub/pull/1194)."""
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.ack(subscription)
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.nack(subscription)


@pytest.mark.parametrize("seconds", [-1, 601])
def test_a_deadline_is_of_0_to_600_seconds(pubsub, seconds):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.extend(subscription, received, seconds=seconds)


@pytest.mark.parametrize("count", [0, -1])
def test_a_pull_of_no_messages_is_refused(pubsub, count):
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.pull_now(subscription, count)


def test_a_pull_gives_at_most_what_it_was_asked_for(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, *(str(n) for n in range(10)))

    first = pubsub.pull_now(subscription, 3)

    assert len(first) <= 3
    assert sorted(pubsub.texts(first + pubsub.pull(subscription, 10 - len(first)))) == [str(n) for n in range(10)]


def test_a_pull_gives_at_most_a_thousand(pubsub):
    topic, subscription = pubsub.pair()
    for _ in range(2):
        pubsub.publish(topic, *(str(n) for n in range(600)))

    received = pubsub.pull_now(subscription, 5000)

    assert 1 <= len(received) <= 1000


def test_a_pull_waits_for_the_first_message(pubsub):
    topic, subscription = pubsub.pair()
    waited = pubsub.in_background(
        lambda: pubsub.subscriber.pull({"subscription": subscription, "max_messages": 5}).received_messages
    )

    pubsub.publish(topic, "a")

    assert pubsub.texts(waited()) == ["a"]


@pytest.mark.parametrize("name", ["no-such-form", "projects/p/topics/changes"])
def test_a_malformed_subscription_is_refused(pubsub, name):
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.pull_now(name, 1)


def test_an_ack_id_is_no_longer_than_a_client_can_batch(pubsub):
    """A request of 2,500 ack ids must stay under 512 KiB (https://github.com/googleapis/google-cloud-go/issues/20391)."""
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a")

    (received,) = pubsub.pull(subscription, 1)

    assert 100 <= len(received.ack_id) <= 256


@pytest.mark.virtual_clock("a subscription keeps messages for ten minutes at least")
def test_a_message_that_is_older_than_the_retention_is_dropped(pubsub):
    topic, subscription = pubsub.pair(message_retention_duration={"seconds": 600})
    pubsub.publish(topic, "old")
    pubsub.pass_time(540)
    pubsub.publish(topic, "young")

    pubsub.pass_time(120)

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["young"]
    pubsub.gives_nothing(subscription)
