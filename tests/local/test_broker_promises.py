"""What the machine promises, over random schedules: publish, deliver, ack, nack, expire, lose streams, restart.

1. Nothing that was published is lost: until it is acked it is in the backlog, and in the end all of it arrives.
2. Messages of one key are first delivered in order, and after a redelivery all later ones come again in order.
3. What comes from one key goes to one consumer as long as something of it is leased.
4. With exactly-once delivery what was acked never comes again, and without ordering no message is leased twice.
5. Every message is let go exactly once.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cdc_reactor.local import wire
from cdc_reactor.local.broker import Broker, open_consumer
from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.leases import Consumer
from cdc_reactor.local.options import RetryPolicy, SubscriptionOptions, TopicOptions

TOPIC, SUBSCRIPTION = "projects/p/topics/orders", "projects/p/subscriptions/orders"

picks = st.lists(st.integers(0, 30), max_size=6)


class Schedule(RuleBasedStateMachine):
    is_ordered = False
    is_exactly_once = False

    @initialize(retry=st.sampled_from([None, RetryPolicy(1, 8), RetryPolicy(0, 5)]))
    def start(self, retry):
        self.now = 1000.0
        self.journal = Journal()
        self.broker = Broker(nonce="0", journal=self.journal)
        topic = self.broker.create_topic(TOPIC, TopicOptions(), b"")
        options = SubscriptionOptions(
            is_ordered=self.is_ordered, is_exactly_once=self.is_exactly_once, retry=retry, retention=1e9
        )
        subscription = self.broker.create_subscription(SUBSCRIPTION, TOPIC, options, b"")
        self.topic, self.backlog, self.subscription = topic, subscription.backlog, subscription
        self.consumers: list[Consumer] = []
        self.published: dict[str, list[int]] = {}
        self.acked: set[int] = set()
        self.arrived: set[int] = set()
        self.last: dict[str, int] = {}
        self.gone: list[int] = []
        #: Every ack id ever given, with the message and who got it.
        self.given: dict[str, tuple[int, str, Consumer]] = {}
        self.restarts = 0
        self.open(None)
        self.open(3)

    @rule(key=st.sampled_from(["", "a", "b", "c"]), count=st.integers(1, 4))
    def publish(self, key, count):
        messages, _ = self.broker.prepare(self.topic, [(wire.field(1, b"x"), key)] * count, self.now)
        self.broker.deliver(self.topic, messages)
        self.published.setdefault(key, []).extend(message.seq for message in messages)

    @rule(most=st.none() | st.integers(1, 4))
    def open(self, most):
        if len(self.consumers) < 4:
            consumer = Consumer(10.0, max_messages=most or float("inf"))
            open_consumer(self.subscription, consumer)
            self.consumers.append(consumer)

    @rule(which=st.integers(0, 3))
    def close(self, which):
        if len(self.consumers) > 1:
            self.backlog.detach(self.consumers.pop(which % len(self.consumers)))

    @rule(which=st.integers(0, 3), most=st.integers(1, 6))
    def take(self, which, most):
        consumer = self.consumers[which % len(self.consumers)]
        before = self.live()
        for lease in self.backlog.take(consumer, self.now, max_messages=most):
            self.arrive(lease.message.seq, lease.message.key, lease.ack_id, consumer, before)
        assert consumer.outstanding <= consumer.max_messages

    def live(self) -> dict[str, tuple[int, str, Consumer]]:
        self.broker.tick(self.now)
        return {ack_id: given for ack_id, given in self.given.items() if self.backlog._leases.find(ack_id)}

    def arrive(self, seq: int, key: str, ack_id: str, consumer: Consumer, before: Any) -> None:
        assert ack_id not in self.given
        self.given[ack_id] = seq, key, consumer
        if self.is_exactly_once:
            assert seq not in self.acked
        if self.is_ordered and key:
            self.follow(seq, key)
            assert {holder for _, one, holder in before.values() if one == key} <= {consumer}
        else:
            assert seq not in {leased for leased, _, _ in before.values()}
        self.arrived.add(seq)

    def follow(self, seq: int, key: str) -> None:
        """Going back is a redelivery; going on skips nothing but what was acked for good."""
        order = self.published[key]
        last = self.last.get(key)
        start = order.index(last) + 1 if last is not None else 0
        skipped = order[start : order.index(seq)]
        assert all(self.is_exactly_once and one in self.acked for one in skipped), (key, last, seq)
        self.last[key] = seq

    def chosen(self, which: list[int]) -> list[str]:
        ack_ids = list(self.given)
        return [ack_ids[-1 - index] for index in which if index < len(ack_ids)]

    @rule(which=picks)
    def acknowledge(self, which):
        ack_ids = self.chosen(which)
        invalid = self.backlog.acknowledge(ack_ids, self.now)
        self.acked.update(self.given[ack_id][0] for ack_id in ack_ids if ack_id not in invalid)

    @rule(which=picks)
    def nack(self, which):
        self.backlog.modify(self.chosen(which), 0, self.now)

    @rule(which=picks, seconds=st.integers(10, 30))
    def extend(self, which, seconds):
        self.backlog.modify(self.chosen(which), seconds, self.now)

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 40.0]))
    def wait(self, seconds):
        self.now += seconds
        self.broker.tick(self.now)

    @rule(count=st.integers(1, 3))
    def duplicate(self, count):
        self.backlog.duplicates = count

    @rule()
    def restart(self):
        self.restarts += 1
        self.broker.forget_leases(nonce=str(self.restarts))
        for consumer in self.consumers:
            self.backlog.detach(consumer)
        self.consumers = []
        self.open(None)
        # What was acked behind an unacked message comes again, and all later ones of its key with it.
        before = {key: self.before_unacked(order) for key, order in self.published.items()}
        self.last = {key: last for key, last in before.items() if last is not None}

    def before_unacked(self, order: list[int]) -> int | None:
        unacked = {message.seq for message in self.backlog.unacked()}
        done = []
        for seq in order:
            if seq in unacked:
                break
            done.append(seq)
        return done[-1] if done else None

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "backlog"):
            return
        unacked = [message.seq for message in self.backlog.unacked()]
        everything = {seq for order in self.published.values() for seq in order}
        assert len(unacked) == len(set(unacked)) == len(self.backlog)
        assert everything - self.acked <= set(unacked)
        if self.is_exactly_once or not self.is_ordered:
            assert set(unacked) == everything - self.acked
        self.gone += [seq for op, rows in self.journal.take() if op is Op.GONE for (seq,) in rows]

    def teardown(self):
        if not hasattr(self, "backlog"):
            return
        everything = {seq for order in self.published.values() for seq in order}
        for consumer in self.consumers:
            self.backlog.detach(consumer)
        self.consumers = []
        self.open(None)
        for _ in range(200):
            if not len(self.backlog):
                break
            self.wait(40.0)
            self.take(0, 1000)
            self.acknowledge(range(60))
        self.nothing_is_lost()
        assert self.arrived == everything
        assert sorted(self.gone) == sorted(everything)
        assert (self.backlog._lanes, self.backlog.outstanding, self.backlog._delayed) == ({}, 0, [])


@pytest.mark.parametrize("is_exactly_once", [False, True], ids=["at_least_once", "exactly_once"])
@pytest.mark.parametrize("is_ordered", [False, True], ids=["unordered", "ordered"])
def test_the_promises_hold_over_random_schedules(is_ordered, is_exactly_once):
    machine = type("Schedule", (Schedule,), {"is_ordered": is_ordered, "is_exactly_once": is_exactly_once})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
