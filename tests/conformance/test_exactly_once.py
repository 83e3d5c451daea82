"""Subscriptions with exactly-once delivery: https://cloud.google.com/pubsub/docs/exactly-once-delivery.

An ack id that is dead is told in google.rpc.ErrorInfo: its metadata says why for each ack id, and the stock clients read
it (`_get_ack_errors` of google-cloud-pubsub).
"""

from __future__ import annotations

import pytest
from google.api_core.exceptions import InvalidArgument
from google.pubsub_v1.types import Subscription

DEAD = "PERMANENT_FAILURE_INVALID_ACK_ID"


@pytest.fixture
def exact(pubsub):
    return pubsub.pair(enable_exactly_once_delivery=True, ack_deadline_seconds=60)


def failures(refused):
    """Why each ack id failed."""
    assert refused.value.reason == "EXACTLY_ONCE_ACKID_FAILURE"
    return dict(refused.value.metadata)


def test_a_confirmed_ack_is_final(pubsub, exact):
    topic, subscription = exact
    pubsub.publish(topic, "a")
    (received,) = pubsub.pull(subscription, 1)

    pubsub.ack(subscription, received)

    pubsub.gives_nothing(subscription, seconds=0.5)


def test_an_ack_after_a_nack_is_refused_with_its_reason(pubsub, exact):
    topic, subscription = exact
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.nack(subscription, first)
    pubsub.pull(subscription, 1)

    with pytest.raises(InvalidArgument) as refused:
        pubsub.ack(subscription, first)

    assert failures(refused) == {first.ack_id: DEAD}


@pytest.mark.slow_clock
def test_an_ack_after_the_deadline_is_refused_with_its_reason(pubsub, exact):
    topic, subscription = exact
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.extend(subscription, first, seconds=1)
    pubsub.pull(subscription, 1, within=3)

    with pytest.raises(InvalidArgument) as refused:
        pubsub.ack(subscription, first)

    assert failures(refused) == {first.ack_id: DEAD}


def test_a_new_deadline_for_a_dead_ack_id_is_refused_with_its_reason(pubsub, exact):
    topic, subscription = exact
    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.nack(subscription, first)
    pubsub.pull(subscription, 1)

    with pytest.raises(InvalidArgument) as refused:
        pubsub.extend(subscription, first, seconds=60)

    assert failures(refused) == {first.ack_id: DEAD}


def test_the_good_ack_ids_of_a_refused_request_count(pubsub, exact):
    topic, subscription = exact
    pubsub.publish(topic, "good", "bad")
    received = {one.message.data: one for one in pubsub.pull(subscription, 2)}
    pubsub.nack(subscription, received[b"bad"])
    (again,) = pubsub.pull(subscription, 1)

    with pytest.raises(InvalidArgument) as refused:
        pubsub.ack(subscription, *received.values())

    assert failures(refused) == {received[b"bad"].ack_id: DEAD}
    pubsub.ack(subscription, again)
    with pytest.raises(InvalidArgument):
        pubsub.nack(subscription, received[b"good"])
    pubsub.gives_nothing(subscription)


def test_a_subscription_can_become_exactly_once(pubsub):
    topic, subscription = pubsub.pair()
    changed = Subscription(name=subscription, enable_exactly_once_delivery=True)
    mask = {"paths": ["enable_exactly_once_delivery"]}

    pubsub.subscriber.update_subscription({"subscription": changed, "update_mask": mask})

    pubsub.publish(topic, "a")
    (first,) = pubsub.pull(subscription, 1)
    pubsub.nack(subscription, first)
    pubsub.pull(subscription, 1)
    with pytest.raises(InvalidArgument) as refused:
        pubsub.ack(subscription, first)
    assert failures(refused) == {first.ack_id: DEAD}


def test_a_stream_tells_that_its_subscription_is_exactly_once(pubsub, exact):
    topic, subscription = exact
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")

    stream.receive(1)

    assert stream.responses[0].subscription_properties.exactly_once_delivery_enabled


def test_a_stream_confirms_acks_and_names_the_dead_ones(pubsub, exact):
    topic, subscription = exact
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")
    (first,) = stream.receive(1)
    pubsub.nack(subscription, first)
    (again,) = stream.receive(1)

    stream.send(ack_ids=[first.ack_id, again.ack_id])

    confirmed = stream.confirmation("acknowledge_confirmation")
    assert (list(confirmed.ack_ids), list(confirmed.invalid_ack_ids)) == ([again.ack_id], [first.ack_id])


def test_a_stream_confirms_new_deadlines_and_names_the_dead_ones(pubsub, exact):
    topic, subscription = exact
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")
    (first,) = stream.receive(1)
    pubsub.nack(subscription, first)
    (again,) = stream.receive(1)

    stream.send(modify_deadline_ack_ids=[first.ack_id, again.ack_id], modify_deadline_seconds=[30, 30])

    confirmed = stream.confirmation("modify_ack_deadline_confirmation")
    assert (list(confirmed.ack_ids), list(confirmed.invalid_ack_ids)) == ([again.ack_id], [first.ack_id])


def test_order_is_kept_too(pubsub):
    topic, subscription = pubsub.pair(enable_exactly_once_delivery=True, enable_message_ordering=True)
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")

    seen: list[str] = []
    while len(seen) < 3:
        received = stream.receive(1)
        seen += pubsub.texts(received)
        pubsub.ack(subscription, *received)

    assert seen == ["a1", "a2", "a3"]
