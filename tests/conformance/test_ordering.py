"""Messages of one ordering key: https://cloud.google.com/pubsub/docs/ordering.

In texts like a1 the letter is the key.
"""

from __future__ import annotations

import random

import pytest


@pytest.fixture
def ordered(pubsub):
    return pubsub.pair(enable_message_ordering=True, ack_deadline_seconds=600)


def of_key(texts, key):
    return [text for text in texts if text.startswith(key)]


def test_each_key_comes_in_the_order_of_publishing(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)

    pubsub.publish_keyed(topic, *(f"{key}{n:02}" for n in range(20) for key in "abc"))

    texts = pubsub.texts(stream.receive(60))
    assert {key: of_key(texts, key) for key in "abc"} == {key: [f"{key}{n:02}" for n in range(20)] for key in "abc"}


def test_a_backlog_comes_in_order_too(pubsub, ordered):
    topic, subscription = ordered
    pubsub.publish_keyed(topic, *(f"a{n:02}" for n in range(50)))

    assert pubsub.texts(pubsub.stream(subscription).receive(50)) == [f"a{n:02}" for n in range(50)]


def test_a_pull_gives_a_key_in_order(pubsub, ordered):
    topic, subscription = ordered
    pubsub.publish_keyed(topic, "a1", "a2", "a3")

    received = pubsub.pull_now(subscription, 10)
    pubsub.ack(subscription, *received)
    while len(received) < 3:
        more = pubsub.pull(subscription, 1)
        pubsub.ack(subscription, *more)
        received += more

    assert pubsub.texts(received) == ["a1", "a2", "a3"]


def test_several_messages_of_one_key_are_in_flight(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)

    pubsub.publish_keyed(topic, "a1", "a2", "a3")

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]


def test_a_nack_brings_all_later_ones_of_the_key_again_in_order_and_no_others(pubsub, ordered):
    """ "If a message is redelivered, then all messages received after that message for the same ordering key will also
    be redelivered" (https://medium.com/google-cloud/google-cloud-pub-sub-ordered-delivery-1e4181f60bc8)."""
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "b1", "a2", "b2", "a3")
    received = {one.message.data.decode(): one for one in stream.receive(5)}

    pubsub.nack(subscription, received["a1"])

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]
    stream.stays_quiet()


def test_a_nack_in_the_middle_leaves_what_stands_before_it(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3", "a4")
    received = stream.receive(4)

    pubsub.nack(subscription, received[2])

    assert pubsub.texts(stream.receive(2)) == ["a3", "a4"]
    stream.stays_quiet()


def test_what_is_published_after_a_nack_comes_after_what_is_redelivered(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2")
    first, _ = stream.receive(2)

    pubsub.nack(subscription, first)
    pubsub.publish_keyed(topic, "a3", "a4")

    assert pubsub.texts(stream.receive(4)) == ["a1", "a2", "a3", "a4"]


def test_nacks_from_the_last_to_the_first_keep_the_order(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    received = stream.receive(3)

    pubsub.nack(subscription, *reversed(received))

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]
    stream.stays_quiet()


def test_a_nack_of_a_whole_key_brings_each_once(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    received = stream.receive(3)

    pubsub.nack(subscription, *received)

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]
    stream.stays_quiet()


def test_a_key_that_fails_again_and_again_never_lets_a_later_one_overtake(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")

    seen = []
    for _ in range(4):
        received = stream.receive(3)
        seen.append(pubsub.texts(received))
        pubsub.nack(subscription, received[0])

    assert seen == [["a1", "a2", "a3"]] * 4


def test_a_key_that_failed_delays_no_other(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2")
    first, _ = stream.receive(2)
    pubsub.nack(subscription, first)
    stream.receive(2)

    pubsub.publish_keyed(topic, "b1", "b2")

    assert pubsub.texts(stream.receive(2)) == ["b1", "b2"]


def test_an_acked_message_before_a_nack_does_not_come_again(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    a1, a2, _ = stream.receive(3)

    pubsub.ack(subscription, a1)
    pubsub.nack(subscription, a2)

    assert pubsub.texts(stream.receive(2)) == ["a2", "a3"]
    stream.stays_quiet()


def test_a_nack_behind_which_one_was_acked_keeps_the_order(pubsub, ordered):
    """The service redelivers all later ones "whether or not they were already acknowledged"; an ack may also count.

    What must not be is that one comes before the nacked one, or that one that was not acked stays away.
    """
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    a1, a2, _ = stream.receive(3)

    pubsub.ack(subscription, a2)
    pubsub.nack(subscription, a1)
    pubsub.publish_keyed(topic, "a4")

    seen: list[str] = []
    while "a4" not in seen:
        seen += pubsub.texts(stream.receive(1))
    assert seen in (["a1", "a2", "a3", "a4"], ["a1", "a3", "a4"])


def test_a_redelivery_may_go_to_another_stream_but_never_to_two(pubsub, ordered):
    topic, subscription = ordered
    first = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    held = first.receive(3)
    second = pubsub.stream(subscription)

    pubsub.nack(subscription, held[0])

    holder, bystander = pubsub.whichever(first, second)
    assert pubsub.texts(holder.receive(3)) == ["a1", "a2", "a3"]
    bystander.stays_quiet()


def test_a_random_consumer_sees_each_key_in_order(pubsub, ordered):
    """Acks and nacks at random; each message is acked in the end, and none before the one in front of it."""
    topic, subscription = ordered
    stream = pubsub.stream(subscription, max_outstanding_messages=20)
    choices, keys, count = random.Random(7), "abcde", 30
    pubsub.publish_keyed(topic, *(f"{key}{n:02}" for n in range(count) for key in keys))

    next_of, nacked = dict.fromkeys(keys, 0), set()
    while set(next_of.values()) != {count}:
        for received in stream.receive(1):
            key, number = received.message.ordering_key, int(received.message.data[1:])
            if key in nacked and number != next_of[key]:
                continue  # given before the nack, and its ack id is dead
            nacked.discard(key)
            assert number <= next_of[key], f"{key}{number} came before {key}{next_of[key]} was acked"
            if choices.random() < 0.3:
                pubsub.nack(subscription, received)
                nacked.add(key)
            else:
                pubsub.ack(subscription, received)
                next_of[key] = max(next_of[key], number + 1)


@pytest.mark.slow_clock
def test_an_expired_deadline_brings_all_later_ones_again_too(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription, deadline=600)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    first, *_ = stream.receive(3)

    pubsub.extend(subscription, first, seconds=1)
    pubsub.pass_time(2)

    assert pubsub.texts(stream.receive(3)) == ["a1", "a2", "a3"]


def test_a_key_stays_on_the_stream_that_holds_it(pubsub, ordered):
    topic, subscription = ordered
    one, other = pubsub.stream(subscription), pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1")
    holder, bystander = pubsub.whichever(one, other)
    assert pubsub.texts(holder.receive(1)) == ["a1"]

    pubsub.publish_keyed(topic, *(f"a{n}" for n in range(2, 9)))

    assert pubsub.texts(holder.receive(7)) == [f"a{n}" for n in range(2, 9)]
    bystander.stays_quiet()


def test_a_key_of_a_dead_stream_waits_until_its_leases_end(pubsub, ordered):
    topic, subscription = ordered
    first = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2")
    held = first.receive(2)
    first.close()
    second = pubsub.stream(subscription)

    pubsub.publish_keyed(topic, "a3", "b1")

    assert pubsub.texts(second.receive(1)) == ["b1"]
    second.stays_quiet()
    pubsub.nack(subscription, *held)
    assert pubsub.texts(second.receive(3)) == ["a1", "a2", "a3"]


def test_acks_of_a_dead_stream_let_its_key_go_on(pubsub, ordered):
    topic, subscription = ordered
    first = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2")
    held = first.receive(2)
    first.close()
    second = pubsub.stream(subscription)

    pubsub.publish_keyed(topic, "a3")
    pubsub.ack(subscription, *held)

    assert pubsub.texts(second.receive(1)) == ["a3"]


def test_without_ordering_a_nack_brings_only_itself_again(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)
    pubsub.publish_keyed(topic, "a1", "a2", "a3")
    received = {one.message.data.decode(): one for one in stream.receive(3)}

    pubsub.nack(subscription, received["a1"])

    assert pubsub.texts(stream.receive(1)) == ["a1"]
    stream.stays_quiet()


def test_without_a_key_a_nack_brings_only_itself_again(pubsub, ordered):
    topic, subscription = ordered
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "x", "y", "z")
    received = {one.message.data.decode(): one for one in stream.receive(3)}

    pubsub.nack(subscription, received["x"])

    assert pubsub.texts(stream.receive(1)) == ["x"]
    stream.stays_quiet()


def test_flow_control_keeps_the_order(pubsub, ordered):
    topic, subscription = ordered
    pubsub.publish_keyed(topic, *(f"a{n:02}" for n in range(20)))
    stream = pubsub.stream(subscription, max_outstanding_messages=3)

    seen: list[str] = []
    while len(seen) < 20:
        received = stream.receive(1)
        assert len(received) <= 3
        seen += pubsub.texts(received)
        pubsub.ack(subscription, *received)

    assert seen == [f"a{n:02}" for n in range(20)]
