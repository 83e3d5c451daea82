"""One subscription: who gets what, what comes again and when. The clock is a number."""

from __future__ import annotations

import pytest

from cdc_reactor.local.journal import Op
from cdc_reactor.local.options import DeadLetterPolicy, RetryPolicy, SubscriptionOptions, TopicOptions

ORDERED = {"is_ordered": True}


# ── deliveries and leases ──


def test_messages_are_delivered_in_the_order_of_publication_each_once(desk):
    desk = desk()
    desk.publish("a", "b", "c")

    assert (desk.taken(2), desk.taken(), desk.taken()) == (["a", "b"], ["c"], [])


def test_an_acked_message_never_comes_again_and_nobody_needs_it(desk):
    desk = desk()
    numbers = desk.publish("a", "b")
    desk.journal.take()

    assert desk.ack(*desk.take()) == []

    desk.wait(1000)
    assert (desk.taken(), len(desk.backlog)) == ([], 0)
    assert desk.journal.take() == [(Op.GONE, [(number,) for number in numbers])]


def test_an_ack_id_is_new_for_each_delivery_and_as_long_as_the_services(desk):
    desk = desk()
    desk.publish("a", "b")
    first = desk.take()
    old = [lease.ack_id for lease in first]
    desk.nack(*first)
    again = [lease.ack_id for lease in desk.take()]

    assert len({*old, *again}) == 4
    assert {len(ack_id) for ack_id in (*old, *again)} == {172}


def test_a_lease_ends_at_its_deadline_and_the_message_comes_again(desk):
    desk = desk()
    desk.publish("a")
    (lease,) = desk.take()
    old = lease.ack_id

    desk.wait(9.99)
    assert desk.taken() == []
    desk.wait(0.01)

    assert desk.taken() == ["a"]
    assert desk.backlog.acknowledge([old], desk.now) == [old]


def test_a_lease_is_extended_from_now_on(desk):
    desk = desk()
    desk.publish("a")
    leases = desk.take()
    desk.wait(9)
    desk.modify(leases, 20)

    desk.wait(19.9)
    assert desk.taken() == []
    desk.wait(0.1)
    assert desk.taken() == ["a"]


def test_a_nacked_message_is_there_at_once(desk):
    desk = desk()
    desk.publish("a", "b")
    a, _ = desk.take()

    desk.nack(a)

    assert desk.taken() == ["a"]


def test_the_next_wakeup_is_when_the_next_lease_ends(desk):
    desk = desk()
    assert desk.broker.next_wakeup() == float("inf")
    desk.publish("a", "b")
    a, b = desk.take()
    desk.modify([a], 30)
    assert desk.broker.next_wakeup() == desk.now + 10

    desk.ack(b)

    assert desk.broker.next_wakeup() == desk.now + 30


def test_flow_control_counts_messages_until_they_are_acked_or_come_back(desk):
    desk = desk()
    consumer = desk.open(max_messages=2)
    desk.publish("a", "b", "c", "d", "e")

    first = desk.take(consumer=consumer)
    assert desk.texts(first) == ["a", "b"]
    assert desk.taken(consumer=consumer) == []
    desk.ack(first[0])
    assert desk.taken(consumer=consumer) == ["c"]
    desk.wait(10)

    assert desk.taken(consumer=consumer) == ["b", "c"]


def test_flow_control_counts_bytes_and_lets_one_message_through_however_large(desk):
    desk = desk()
    consumer = desk.open(max_bytes=1000)
    desk.publish("x" * 5000, "y" * 100, "z" * 100)

    (large,) = desk.take(consumer=consumer)
    assert desk.taken(consumer=consumer) == []
    desk.ack(large)

    assert desk.taken(consumer=consumer) == ["y" * 100, "z" * 100]


def test_a_response_has_its_own_size_and_takes_one_message_however_large(desk):
    desk = desk()
    desk.publish("x" * 500, "y" * 500, "z" * 5000)

    sizes = [[len(text) for text in desk.taken(max_bytes=1200)] for _ in range(3)]

    assert sizes == [[500, 500], [5000], []]


def test_what_a_dead_stream_held_stays_leased_until_its_deadline(desk):
    desk = desk()
    desk.publish("a")
    desk.take()
    desk.backlog.detach(desk.consumer)
    other = desk.open()

    desk.wait(9)
    assert desk.taken(consumer=other) == []
    desk.wait(1)
    assert desk.taken(consumer=other) == ["a"]


def test_consumers_with_room_are_woken_when_there_is_something(desk):
    desk = desk()
    woken = []
    full, idle = desk.open(max_messages=1), desk.open()
    desk.publish("a")
    desk.take(consumer=full)
    full.wake, idle.wake = lambda: woken.append("full"), lambda: woken.append("idle")

    desk.publish("b")

    assert woken == ["idle"]


def test_messages_older_than_the_retention_are_dropped(desk):
    desk = desk(retention=600.0)
    desk.publish("old", "taken")
    desk.now += 500
    desk.publish("young")
    desk.nack(*desk.take())

    desk.now += 101

    assert desk.taken() == ["young"]
    assert desk.unacked() == ["young"]


def test_a_filter_keeps_out_what_does_not_match(desk):
    desk = desk(accepts=lambda attributes: attributes.get("kind") == "wanted")

    desk.publish("a", kind="wanted")
    desk.publish("b")
    desk.publish("c", kind="wanted")

    assert desk.taken() == ["a", "c"]
    assert len(desk.backlog) == 2


# ── retries and dead letters ──


def test_a_retry_policy_holds_back_twice_as_long_each_time_within_its_bounds(desk):
    desk = desk(retry=RetryPolicy(10, 30))
    desk.publish("a")
    waits = []
    for _ in range(4):
        desk.nack(*desk.take())
        started = desk.now
        desk.now = desk.broker.next_wakeup()
        waits.append(desk.now - started)

    assert waits == [10, 20, 30, 30]


def test_attempts_count_nacks_and_expiries(desk):
    desk = desk()
    desk.publish("a")
    attempts = []
    for end in (desk.nack, lambda _: desk.wait(10), desk.nack):
        (lease,) = desk.take()
        attempts.append(lease.attempt)
        end(lease)

    assert attempts == [1, 2, 3]


def test_what_failed_often_enough_goes_to_the_dead_letter_topic_with_where_it_came_from(desk):
    policy = DeadLetterPolicy("projects/p/topics/dead", 5)
    desk = desk(dead_letter=policy, **ORDERED)
    dead = desk.broker.create_topic(policy.topic, TopicOptions(), b"")
    subscription = desk.broker.create_subscription(
        "projects/p/subscriptions/dead", dead.name, desk.backlog.options, b""
    )
    desk.publish("a", "b", key="k", colour="red")
    for _ in range(5):
        desk.nack(desk.take()[0])

    (message,) = subscription.backlog.unacked()

    assert (message.key, dict(message.attributes())) == (
        "k",
        {
            "colour": "red",
            "CloudPubSubDeadLetterSourceDeliveryCount": "5",
            "CloudPubSubDeadLetterSourceSubscription": "orders-sub",
            "CloudPubSubDeadLetterSourceSubscriptionProject": "p",
            "CloudPubSubDeadLetterSourceTopicPublishTime": "1970-01-12T13:46:40.000+00:00",
        },
    )
    assert (desk.unacked(), desk.taken()) == (["b"], ["b"])


def test_where_the_dead_letter_topic_is_gone_the_message_comes_again(desk):
    desk = desk(dead_letter=DeadLetterPolicy("projects/p/topics/gone", 5))
    desk.publish("a")
    for _ in range(7):
        desk.nack(*desk.take())

    assert desk.taken() == ["a"]


# ── lanes ──


def test_several_messages_of_a_key_are_out_at_once_to_one_consumer_only(desk):
    desk = desk(**ORDERED)
    other = desk.open()
    desk.publish("a1", "a2", "a3", key="a")
    desk.publish("b1", key="b")

    assert desk.taken(2) == ["a1", "a2"]
    assert desk.taken(consumer=other) == ["b1"]
    assert desk.taken() == ["a3"]


def test_a_nacked_message_brings_all_later_ones_of_its_key_again_in_order(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", "a3", key="a")
    desk.publish("b1", key="b")
    _, a2, a3, _ = desk.take()
    old = [a2.ack_id, a3.ack_id]

    desk.nack(a2)

    assert desk.taken() == ["a2", "a3"]
    assert desk.backlog.acknowledge(old, desk.now) == old


def test_what_was_acked_behind_a_nacked_message_comes_again_too(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", "a3", key="a")
    a1, a2, a3 = desk.take()
    desk.ack(a2, a3)
    assert desk.unacked() == ["a1", "a2", "a3"]

    desk.nack(a1)

    assert desk.taken() == ["a1", "a2", "a3"]


def test_acks_are_final_once_everything_before_them_is_acked(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", "a3", key="a")
    a1, a2, a3 = desk.take()

    desk.ack(a3)
    desk.ack(a1)
    assert desk.unacked() == ["a2", "a3"]
    desk.ack(a2)

    assert (desk.unacked(), desk.backlog.outstanding) == ([], 0)


def test_with_exactly_once_what_was_acked_never_comes_again(desk):
    desk = desk(is_exactly_once=True, **ORDERED)
    desk.publish("a1", "a2", "a3", key="a")
    a1, a2, _ = desk.take()
    desk.ack(a2)
    assert desk.unacked() == ["a1", "a3"]

    desk.nack(a1)

    assert desk.taken() == ["a1", "a3"]


def test_a_lane_given_back_from_its_end_stays_in_order(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", "a3", key="a")
    a1, a2, a3 = desk.take()

    for lease in (a3, a2, a1):
        desk.nack(lease)

    assert desk.taken() == ["a1", "a2", "a3"]


def test_while_a_key_waits_for_its_retry_nothing_newer_of_it_goes_out_and_other_keys_do(desk):
    desk = desk(retry=RetryPolicy(10, 600), **ORDERED)
    desk.publish("a1", "a2", key="a")
    desk.nack(desk.take(1)[0])
    desk.publish("a3", key="a")
    desk.publish("b1", key="b")

    assert desk.taken() == ["b1"]
    desk.wait(10)
    assert desk.taken() == ["a1", "a2", "a3"]


def test_an_expired_message_brings_all_later_ones_of_its_key_again(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", key="a")
    a1, a2 = desk.take()
    desk.modify([a2], 60)

    desk.wait(10)

    assert desk.taken() == ["a1", "a2"]
    assert (a1.attempt, a2.attempt) == (2, 1)


def test_a_key_whose_stream_died_waits_until_its_leases_are_over(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", key="a")
    desk.take()
    desk.backlog.detach(desk.consumer)
    other = desk.open()
    desk.publish("a2", key="a")

    desk.wait(9)
    assert desk.taken(consumer=other) == []
    desk.wait(1)
    assert desk.taken(consumer=other) == ["a1", "a2"]


def test_a_key_whose_stream_died_goes_on_when_its_leases_are_acked(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", key="a")
    leases = desk.take()
    desk.backlog.detach(desk.consumer)
    other = desk.open()
    desk.publish("a2", key="a")
    assert desk.taken(consumer=other) == []

    desk.ack(*leases)

    assert desk.taken(consumer=other) == ["a2"]


def test_a_key_that_is_free_again_does_not_wait_for_a_stalled_consumer(desk):
    desk = desk(**ORDERED)
    stalled, other = desk.open(max_messages=1), desk.open()
    desk.publish("a1", "a2", key="a")
    (a1,) = desk.take(consumer=stalled)
    assert desk.taken(consumer=other) == []

    desk.ack(a1)

    assert desk.taken(consumer=other) == ["a2"]


def test_the_lanes_of_acked_keys_are_forgotten(desk):
    desk = desk(**ORDERED)
    for number in range(100):
        desk.publish("x", "y", key=f"k{number}")

    desk.ack(*desk.take())

    assert desk.backlog._lanes == {}


def test_a_duplicate_comes_at_once_and_brings_the_later_ones_of_its_key_too(desk):
    desk = desk(**ORDERED)
    desk.publish("a1", "a2", key="a")
    desk.publish("b1", key="b")
    desk.backlog.duplicates = 1

    first = desk.take()
    again = desk.take()

    assert (desk.texts(first), desk.texts(again)) == (["a1", "a2", "b1"], ["a1", "a2"])
    assert desk.ack(*first) == [first[0].ack_id, first[1].ack_id]
    assert desk.ack(*again) == []
    assert (len(desk.backlog), desk.consumer.outstanding, desk.consumer.outstanding_bytes) == (0, 0, 0)


# ── seek and snapshots ──


def test_seek_to_a_time_acks_what_is_older_and_brings_again_what_is_younger(desk):
    desk = desk(retains_acked=True)
    desk.publish("a")
    desk.now += 10
    desk.publish("b", "c")
    desk.ack(*desk.take(2))

    desk.broker.seek_to_time(desk.subscription, desk.now, desk.now)
    assert desk.taken() == ["b", "c"]
    desk.broker.seek_to_time(desk.subscription, desk.now + 1, desk.now)
    assert (desk.taken(), desk.unacked()) == ([], [])
    desk.broker.seek_to_time(desk.subscription, 0, desk.now)
    assert desk.taken() == ["a", "b", "c"]


def test_without_retained_acked_messages_seek_brings_again_only_what_was_not_acked(desk):
    desk = desk()
    desk.publish("a", "b")
    a, b = desk.take()
    desk.ack(a)

    desk.broker.seek_to_time(desk.subscription, 0, desk.now)

    assert desk.backlog.acknowledge([b.ack_id], desk.now) == [b.ack_id]
    assert desk.taken() == ["b"]


def test_a_topic_that_retains_gives_its_messages_to_subscriptions_that_seek_back(desk):
    desk = desk()
    desk.broker.update_topic(desk.topic, TopicOptions(retention=600.0), b"")
    desk.publish("a", "b")
    late = desk.subscribe("late")

    desk.broker.seek_to_time(late, 0, desk.now)

    assert [message.seq for message in late.backlog.unacked()] == [message.seq for message in desk.backlog.unacked()]
    desk.broker.purge(desk.now + 601)
    assert not desk.topic.retained


def test_a_snapshot_keeps_what_was_unacked_and_all_that_followed(desk):
    desk = desk()
    desk.publish("a", "b")
    a, b = desk.take()
    desk.ack(a)
    snapshot = desk.broker.create_snapshot("projects/p/snapshots/snap", desk.subscription, b"", desk.now)
    desk.publish("c")
    desk.ack(b, *desk.take())
    assert desk.unacked() == []

    desk.broker.seek_to_snapshot(desk.subscription, snapshot)

    assert desk.taken() == ["b", "c"]


def test_nobody_needs_a_message_once_its_last_snapshot_is_deleted(desk):
    desk = desk()
    (number,) = desk.publish("a")
    desk.broker.create_snapshot("projects/p/snapshots/snap", desk.subscription, b"", desk.now)
    desk.ack(*desk.take())
    desk.journal.take()

    desk.broker.delete_snapshot("projects/p/snapshots/snap")

    assert desk.journal.take()[0] == (Op.GONE, [(number,)])


@pytest.mark.parametrize("end", ["delete", "detach"])
def test_a_subscription_that_ends_lets_its_messages_go(desk, end):
    desk = desk()
    numbers = desk.publish("a", "b")
    desk.take(1)
    desk.journal.take()

    if end == "delete":
        desk.broker.delete_subscription(desk.subscription.name)
    else:
        desk.broker.detach_subscription(desk.subscription.name, b"")

    rows = dict(desk.journal.take())
    assert rows[Op.GONE] == [(number,) for number in numbers]
    assert (len(desk.backlog), desk.backlog.outstanding) == (0, 0)


def test_old_messages_are_dropped_wherever_they_wait(desk):
    desk = desk(retention=600.0, **ORDERED)
    desk.publish("fresh")
    desk.publish("a1", "a2", key="a")
    desk.publish("again")
    leases = desk.take()
    desk.nack(*leases)

    desk.now += 601

    assert (desk.taken(), desk.unacked(), desk.backlog._lanes) == ([], [], {})


def test_purging_drops_what_is_too_old_and_keeps_what_is_leased(desk):
    desk = desk(retention=600.0, retains_acked=True)
    desk.publish("leased", "acked", "waiting")
    leased, acked = desk.take(2)
    desk.modify([leased], 600)
    desk.ack(acked)

    desk.broker.purge(desk.now + 601)

    assert desk.unacked() == ["leased"]
    desk.broker.seek_to_time(desk.subscription, 0, desk.now)
    assert desk.taken() == ["leased"]


def test_a_subscription_that_retains_no_more_lets_its_acked_messages_go(desk):
    desk = desk(retains_acked=True)
    (number,) = desk.publish("a")
    desk.ack(*desk.take())
    desk.journal.take()

    desk.broker.update_subscription(desk.subscription, SubscriptionOptions(), b"")

    assert desk.journal.take()[0] == (Op.GONE, [(number,)])


def test_a_subscription_expires_when_nobody_uses_it_and_not_while_somebody_consumes(desk):
    desk = desk(expires_after=100.0)
    desk.broker.use(desk.subscription.name, desk.now)
    desk.broker.purge(desk.now + 1000)
    assert desk.subscription.name in desk.broker.subscriptions

    desk.backlog.detach(desk.consumer)
    desk.broker.purge(desk.now + 1099)
    assert desk.subscription.name in desk.broker.subscriptions
    desk.broker.purge(desk.now + 1100)

    assert desk.subscription.name not in desk.broker.subscriptions
