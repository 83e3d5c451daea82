"""All that a broker remembers, made new, or made of what a store tells, as it was when it last confirmed something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from cdc_reactor.local import definitions, protos, wire
from cdc_reactor.local.broker import FIRST_SEQ, Broker, Snapshot, Subscription, Topic
from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.names import Kind
from cdc_reactor.local.schema_registry import SchemaRegistry
from cdc_reactor.local.store import Resource, Store
from cdc_reactor.local.stored_messages import StoredMessage

#: What the store calls policies of google.iam.v1; their name is the resource's.
POLICIES = "policies"


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine, the schemas, and policies by resource."""

    broker: Broker
    schemas: SchemaRegistry
    policies: dict[str, Any]

    @classmethod
    def new(cls, *, nonce: str) -> Self:
        """Remember nothing."""
        return cls.of(Broker(nonce=nonce))

    @classmethod
    def of(cls, broker: Broker) -> Self:
        """Remember this machine, no schema and no policy."""
        return cls(broker, SchemaRegistry(broker), {})


def recover(store: Store, *, nonce: str) -> Memory:
    """Remember what is stored; the journal is on, and must be written to the same store."""
    memory = Memory.of(Broker(nonce=nonce, journal=Journal(), first_seq=max(store.reserved(), FIRST_SEQ)))
    _Recovery(store, memory.broker).run()
    for resource in store.resources():
        if resource.kind == Kind.SCHEMA.value:
            memory.schemas.restore(resource.name, resource.definition)
        elif resource.kind == POLICIES:
            memory.policies[resource.name] = protos.Policy.FromString(resource.definition)
    return memory


class _Recovery:
    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self._topics: dict[int, Topic] = {}
        self._subscriptions: dict[int, list[Subscription]] = {}
        self._snapshots: dict[int, list[Snapshot]] = {}

    def run(self) -> None:
        resources = self._store.resources()
        for kind, restore in (
            (Kind.TOPIC, self._restore_topic),
            (Kind.SUBSCRIPTION, self._restore_subscription),
            (Kind.SNAPSHOT, self._restore_snapshot),
        ):
            for resource in resources:
                if resource.kind == kind.value:
                    restore(resource)
        self._restore_messages()

    def _restore_topic(self, resource: Resource) -> None:
        definition = protos.Topic.FromString(resource.definition)
        options = definitions.topic_options(definition)
        self._topics[resource.uid] = self._broker.restore_topic(resource.name, resource.uid, options, definition)

    def _restore_subscription(self, resource: Resource) -> None:
        definition = protos.Subscription.FromString(resource.definition)
        options = definitions.subscription_options(definition)
        topic = self._topics.get(resource.topic_uid)
        subscription = self._broker.restore_subscription(resource.name, resource.uid, topic, options, definition)
        if definition.detached:
            self._broker.end_detached(subscription)
        else:
            self._subscriptions.setdefault(resource.topic_uid, []).append(subscription)

    def _restore_snapshot(self, resource: Resource) -> None:
        definition = protos.Snapshot.FromString(resource.definition)
        topic = self._topics.get(resource.topic_uid)
        snapshot = self._broker.restore_snapshot(
            resource.name, resource.uid, topic, definition, expires=resource.expires
        )
        self._snapshots.setdefault(resource.topic_uid, []).append(snapshot)

    def _restore_messages(self) -> None:
        acked, held = self._store.acked(), self._store.held()
        for seq, topic_uid, published, key, body in self._store.messages():
            stamp = wire.stamp(str(seq), wire.timestamp(published))
            message = StoredMessage(seq, body, stamp=stamp, published=published, key=key)
            for subscription in self._subscriptions.get(topic_uid, ()):
                if (seq, subscription.uid) in acked:
                    subscription.backlog.retain(message)
                elif seq > subscription.uid or (seq, subscription.uid) in held:
                    subscription.backlog.add((message,))
            for snapshot in self._snapshots.get(topic_uid, ()):
                if seq > snapshot.uid or (seq, snapshot.uid) in held:
                    snapshot.hold(message)
            topic = self._topics.get(topic_uid)
            if topic is not None and topic.options.retention:
                topic.retain((message,))
            if not message.holders:
                # Its last holder went, and that was not written any more.
                self._broker.journal.note(Op.GONE, (seq,))
        for subscription in self._broker.subscriptions.values():
            subscription.backlog.counts.published = 0
