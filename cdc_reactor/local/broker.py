"""The broker as a machine of values: topics, subscriptions, snapshots, and what is published to them. Pure.

Time is whatever the caller passes as `now` (seconds since 1970, never decreasing); numbers that must be unique come
from one sequence, which is also the order of publication. Definitions of resources are opaque here and never changed in
place: `definitions` makes them and the options that this machine reads. What must survive a restart is noted in the
journal, and nothing here waits for it: whoever drives the machine confirms a publish only after the journal was written
(`prepare`, write, `deliver`). Every refusal is a `Refused`. Not thread-safe.

Not kept: a restart forgets leases, delivery attempts and when a subscription was last used; everything unacked comes
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any

from cdc_reactor.local import names, wire
from cdc_reactor.local.backlog import Backlog, let_go
from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.leases import Consumer, Lease
from cdc_reactor.local.limits import MIN_SNAPSHOT_LIFE, SNAPSHOT_LIFE
from cdc_reactor.local.names import Kind
from cdc_reactor.local.options import SubscriptionOptions, TopicOptions
from cdc_reactor.local.refusals import Refused, already_exists, not_found, precondition
from cdc_reactor.local.stored_messages import StoredMessage

#: The first number of the sequence: message ids of the service have 16 or 17 digits.
FIRST_SEQ = 10**16

_RESERVE = 1_000_000


class Topic:
    """A topic, and who gets what is published to it."""

    def __init__(self, name: str, uid: int, options: TopicOptions, definition: Any) -> None:
        self.name = name
        self.uid = uid
        self.options = options
        self.definition = definition
        self.subscriptions: list[Subscription] = []
        self.snapshots: list[Snapshot] = []
        self.retained: deque[StoredMessage] = deque()
        self.published = 0

    @property
    def is_needed(self) -> bool:
        """Whether anybody would hold what is published now."""
        return bool(self.subscriptions or self.snapshots or self.options.retention)

    def retain(self, messages: Iterable[StoredMessage]) -> None:
        """Keep messages for whoever seeks back."""
        for message in messages:
            message.holders += 1
            self.retained.append(message)


class Subscription:
    """A subscription; `topic` is None once its topic is deleted, `ended` says why streams of it must end."""

    def __init__(self, name: str, uid: int, topic: Topic | None, definition: Any, backlog: Backlog) -> None:
        self.name = name
        self.uid = uid
        self.topic = topic
        self.definition = definition
        self.backlog = backlog
        self.is_detached = False
        #: When it was last used; 0 for not since the broker began.
        self.used = 0.0
        self.ended: Refused | None = None

    @property
    def options(self) -> SubscriptionOptions:
        """What it was asked to do."""
        return self.backlog.options

    @property
    def topic_name(self) -> str:
        """The topic's name as the service tells it."""
        return self.topic.name if self.topic else names.DELETED_TOPIC


class Snapshot:
    """The messages that a subscription had not acked at a moment, and all that were published since."""

    def __init__(self, name: str, uid: int, topic: Topic | None, definition: Any, *, expires: float) -> None:
        self.name = name
        self.uid = uid
        self.topic = topic
        self.definition = definition
        self.expires = expires
        self.messages: dict[int, StoredMessage] = {}

    @property
    def topic_name(self) -> str:
        """The topic's name as the service tells it."""
        return self.topic.name if self.topic else names.DELETED_TOPIC

    def hold(self, message: StoredMessage) -> None:
        """Keep a message."""
        message.holders += 1
        self.messages[message.seq] = message


class Broker:
    """Topics, subscriptions and snapshots by name. `nonce` must be new for each start: ack ids begin with it."""

    def __init__(self, *, nonce: str, journal: Journal | None = None, first_seq: int = FIRST_SEQ) -> None:
        self.topics: dict[str, Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.journal = journal if journal is not None else Journal(is_on=False)
        self._nonce = nonce
        self._seq = first_seq
        self._reserved = first_seq

    # ── topics ──

    def create_topic(self, name: str, options: TopicOptions, definition: Any) -> Topic:
        """Create a topic; raises ALREADY_EXISTS."""
        if name in self.topics:
            raise already_exists(name)
        topic = self.restore_topic(name, self.next_seq(), options, definition)
        self._define(Kind.TOPIC, topic, 0)
        return topic

    def topic(self, name: str) -> Topic:
        """Return a topic; raises NOT_FOUND."""
        try:
            return self.topics[name]
        except KeyError:
            raise not_found(name) from None

    def update_topic(self, topic: Topic, options: TopicOptions, definition: Any) -> None:
        """Give a topic other options."""
        topic.options, topic.definition = options, definition
        self._define(Kind.TOPIC, topic, 0)
        if not options.retention:
            self._release(topic.retained)
            topic.retained.clear()

    def delete_topic(self, name: str) -> None:
        """Delete a topic; its subscriptions keep their backlog and say `_deleted-topic_`."""
        topic = self.topic(name)
        del self.topics[name]
        self._release(topic.retained)
        for subscription in topic.subscriptions:
            subscription.topic = None
        for snapshot in topic.snapshots:
            snapshot.topic = None
        self.journal.note(Op.REMOVED, (Kind.TOPIC.value, name))

    # ── subscriptions ──

    def create_subscription(
        self, name: str, topic_name: str, options: SubscriptionOptions, definition: Any
    ) -> Subscription:
        """Create a subscription to what is published from now on; raises ALREADY_EXISTS or NOT_FOUND."""
        topic = self.topic(topic_name)
        if name in self.subscriptions:
            raise already_exists(name)
        subscription = self.restore_subscription(name, self.next_seq(), topic, options, definition)
        self._define(Kind.SUBSCRIPTION, subscription, topic.uid)
        return subscription

    def subscription(self, name: str) -> Subscription:
        """Return a subscription; raises NOT_FOUND."""
        try:
            return self.subscriptions[name]
        except KeyError:
            raise not_found(name) from None

    def use(self, name: str, now: float) -> Subscription:
        """Return a subscription that is being used; raises NOT_FOUND."""
        subscription = self.subscription(name)
        self._expire(subscription, now)
        subscription = self.subscription(name)
        subscription.used = now
        return subscription

    def _expire(self, subscription: Subscription, now: float) -> None:
        """Delete a subscription that nobody used for too long."""
        if subscription.backlog.consumers or not subscription.used:
            subscription.used = now
        if now - subscription.used >= subscription.options.expires_after:
            self.delete_subscription(subscription.name)

    def update_subscription(self, subscription: Subscription, options: SubscriptionOptions, definition: Any) -> None:
        """Give a subscription other options."""
        subscription.definition = definition
        subscription.backlog.configure(options)
        self._define(Kind.SUBSCRIPTION, subscription, _uid(subscription.topic))

    def delete_subscription(self, name: str) -> None:
        """Delete a subscription and its backlog; its streams end."""
        subscription = self.subscription(name)
        del self.subscriptions[name]
        self._end(subscription, not_found(name))
        self.journal.note(Op.REMOVED, (Kind.SUBSCRIPTION.value, name))

    def detach_subscription(self, name: str, definition: Any) -> None:
        """Cut a subscription off from its topic and drop its backlog; its streams end."""
        subscription = self.subscription(name)
        subscription.definition = definition
        self._define(Kind.SUBSCRIPTION, subscription, _uid(subscription.topic))
        self.end_detached(subscription)

    def end_detached(self, subscription: Subscription) -> None:
        """Let a subscription be as one is after it was detached."""
        subscription.is_detached = True
        self._end(subscription, precondition(f"The subscription is detached (resource={subscription.name})."))

    def _end(self, subscription: Subscription, reason: Refused) -> None:
        subscription.ended = reason
        topic = subscription.topic
        if topic is not None and subscription in topic.subscriptions:
            topic.subscriptions.remove(subscription)
        subscription.backlog.clear()

    # ── publishing ──

    def prepare(
        self, topic: Topic, drafts: Sequence[tuple[bytes, str]], now: float
    ) -> tuple[list[StoredMessage], list[str]]:
        """Give each draft (a serialised PubsubMessage and its ordering key) its number and date; return their ids too.

        The messages reach nobody before `deliver`.
        """
        published = wire.timestamp(now)
        is_needed, uid = topic.is_needed, topic.uid
        note = self.journal.note if self.journal.is_on else None
        messages, ids = [], []
        for body, key in drafts:
            seq = self.next_seq()
            message_id = str(seq)
            ids.append(message_id)
            if is_needed:
                stamp = wire.stamp(message_id, published)
                messages.append(StoredMessage(seq, body, stamp=stamp, published=now, key=key))
                if note is not None:
                    note(Op.PUBLISHED, (seq, uid, now, key, body))
        topic.published += len(ids)
        return messages, ids

    def deliver(self, topic: Topic, messages: Sequence[StoredMessage]) -> None:
        """Hand prepared messages to subscriptions and snapshots."""
        if topic.options.retention:
            topic.retain(messages)
        for snapshot in topic.snapshots:
            for message in messages:
                snapshot.hold(message)
                if message.seq < snapshot.uid:
                    self.journal.note(Op.HELD, (snapshot.uid, message.seq))
        for subscription in topic.subscriptions:
            subscription.backlog.add(messages)
        for message in messages:
            if not message.holders:
                self.journal.note(Op.GONE, (message.seq,))

    def _dead_letter(self, subscription: Subscription, lease: Lease, now: float) -> bool:
        policy = subscription.options.dead_letter
        topic = self.topics.get(policy.topic) if policy else None
        if topic is None:
            return False
        project, subscription_id = names.parts(subscription.name)
        message = lease.message
        published = datetime.fromtimestamp(message.published, UTC).isoformat(timespec="milliseconds")
        # https://cloud.google.com/pubsub/docs/handling-failures#track-delivery-attempts names these attributes.
        attributes = wire.attributes(
            {
                "CloudPubSubDeadLetterSourceDeliveryCount": str(lease.attempt - 1),
                "CloudPubSubDeadLetterSourceSubscription": subscription_id,
                "CloudPubSubDeadLetterSourceSubscriptionProject": project,
                "CloudPubSubDeadLetterSourceTopicPublishTime": published,
            }
        )
        messages, _ = self.prepare(topic, [(message.body + attributes, message.key)], now)
        self.deliver(topic, messages)
        return True

    # ── snapshots and seek ──

    def create_snapshot(self, name: str, subscription: Subscription, definition: Any, now: float) -> Snapshot:
        """Keep what is unacked now and all that follows; raises ALREADY_EXISTS, or FAILED_PRECONDITION."""
        topic = subscription.topic
        if topic is None or subscription.is_detached:
            raise precondition(f"The subscription has no topic any more (resource={subscription.name}).")
        unacked = subscription.backlog.unacked()
        age = now - unacked[0].published if unacked else 0.0
        if SNAPSHOT_LIFE - age < MIN_SNAPSHOT_LIFE:
            raise precondition(
                f"The oldest unacked message is {age / 86_400:.2f} days old: the snapshot would expire in less than an "
                f"hour (resource={subscription.name})."
            )
        uid = self.next_seq()
        name = name or f"{names.project_of(subscription.name)}/snapshots/snapshot-{uid:x}"
        if name in self.snapshots:
            raise already_exists(name)
        snapshot = self.restore_snapshot(name, uid, topic, definition, expires=now + SNAPSHOT_LIFE - age)
        for message in unacked:
            snapshot.hold(message)
            self.journal.note(Op.HELD, (uid, message.seq))
        self._define(Kind.SNAPSHOT, snapshot, topic.uid)
        return snapshot

    def snapshot(self, name: str) -> Snapshot:
        """Return a snapshot; raises NOT_FOUND."""
        try:
            return self.snapshots[name]
        except KeyError:
            raise not_found(name) from None

    def update_snapshot(self, snapshot: Snapshot, definition: Any, expires: float) -> None:
        """Give a snapshot other labels or another expiry."""
        snapshot.definition, snapshot.expires = definition, expires
        self._define(Kind.SNAPSHOT, snapshot, _uid(snapshot.topic))

    def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot."""
        snapshot = self.snapshot(name)
        del self.snapshots[name]
        if snapshot.topic is not None:
            snapshot.topic.snapshots.remove(snapshot)
        self._release(snapshot.messages.values())
        self.journal.note(Op.REMOVED, (Kind.SNAPSHOT.value, name))

    def seek_to_time(self, subscription: Subscription, when: float, now: float) -> None:
        """Make unacked what was published at `when` or later and is still kept, and acked what is older."""
        self.purge(now)
        others = subscription.topic.retained if subscription.topic else ()
        subscription.backlog.seek(lambda message: message.published >= when, others)

    def seek_to_snapshot(self, subscription: Subscription, snapshot: Snapshot) -> None:
        """Make unacked what the snapshot holds, and acked all else; raises FAILED_PRECONDITION for another topic's."""
        if snapshot.topic is not subscription.topic:
            raise precondition(
                f"The snapshot is of {snapshot.topic_name}, the subscription of {subscription.topic_name} "
                f"(resource={snapshot.name})."
            )
        held = snapshot.messages
        subscription.backlog.seek(lambda message: message.seq in held, held.values())

    # ── time ──

    def tick(self, now: float) -> None:
        """Do what is due in every subscription."""
        for subscription in self.subscriptions.values():
            subscription.backlog.tick(now)

    def purge(self, now: float) -> None:
        """Forget what is kept longer than asked for; call it now and then, a minute is often enough."""
        for subscription in list(self.subscriptions.values()):
            subscription.backlog.purge(now)
            self._expire(subscription, now)
        for topic in self.topics.values():
            horizon = now - (topic.options.retention or inf)
            while topic.retained and topic.retained[0].published < horizon:
                let_go(topic.retained.popleft(), self.journal)
        for snapshot in [snapshot for snapshot in self.snapshots.values() if snapshot.expires <= now]:
            self.delete_snapshot(snapshot.name)

    def next_wakeup(self) -> float:
        """Return when `tick` has something to do, infinity for never."""
        return min((subscription.backlog.next_wakeup() for subscription in self.subscriptions.values()), default=inf)

    # ── numbers, and what a restart brings back ──

    def next_seq(self) -> int:
        """Return a number that no message or resource had before, not even before a restart."""
        self._seq += 1
        if self._seq >= self._reserved:
            self._reserved = self._seq + _RESERVE
            self.journal.note(Op.RESERVED, (self._reserved,))
        return self._seq

    def restore_topic(self, name: str, uid: int, options: TopicOptions, definition: Any) -> Topic:
        """Put a topic in its place."""
        topic = self.topics[name] = Topic(name, uid, options, definition)
        return topic

    def restore_subscription(
        self, name: str, uid: int, topic: Topic | None, options: SubscriptionOptions, definition: Any
    ) -> Subscription:
        """Put a subscription in its place, with nothing in its backlog."""

        def dead_letter(lease: Lease, now: float) -> bool:
            return self._dead_letter(subscription, lease, now)

        backlog = Backlog(uid, options, nonce=self._nonce, journal=self.journal, dead_letter=dead_letter)
        subscription = self.subscriptions[name] = Subscription(name, uid, topic, definition, backlog)
        if topic is not None:
            topic.subscriptions.append(subscription)
        return subscription

    def restore_snapshot(
        self, name: str, uid: int, topic: Topic | None, definition: Any, *, expires: float
    ) -> Snapshot:
        """Put a snapshot in its place, with nothing in it."""
        snapshot = self.snapshots[name] = Snapshot(name, uid, topic, definition, expires=expires)
        if topic is not None:
            topic.snapshots.append(snapshot)
        return snapshot

    def forget_leases(self, *, nonce: str) -> None:
        """Let everything unacked come again under new ack ids, as after a restart."""
        self._nonce = nonce
        for subscription in self.subscriptions.values():
            subscription.backlog.restart(nonce)

    def _define(self, kind: Kind, resource: Topic | Subscription | Snapshot, topic_uid: int) -> None:
        expires = resource.expires if isinstance(resource, Snapshot) else 0.0
        row = (kind.value, resource.name, resource.uid, topic_uid, expires, resource.definition)
        self.journal.note(Op.DEFINED, row)

    def _release(self, messages: Iterable[StoredMessage]) -> None:
        for message in messages:
            let_go(message, self.journal)


def open_consumer(subscription: Subscription, consumer: Consumer) -> None:
    """Let a consumer take part; raises FAILED_PRECONDITION for a detached subscription."""
    if subscription.ended is not None:
        raise subscription.ended
    subscription.backlog.attach(consumer)


def _uid(topic: Topic | None) -> int:
    return topic.uid if topic else 0
