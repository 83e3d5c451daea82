"""What is on disk: a restart loses nothing that was confirmed, and keeps nothing that nobody needs."""

from __future__ import annotations

import sqlite3

import pytest

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.local import protos, wire
from cdc_reactor.local.broker import Broker
from cdc_reactor.local.leases import Consumer
from cdc_reactor.local.options import SubscriptionOptions, TopicOptions
from cdc_reactor.local.recovery import recover
from cdc_reactor.local.store import Store

TOPIC, SUBSCRIPTION = "projects/p/topics/orders", "projects/p/subscriptions/orders"


class Disk:
    """A machine with a store; `restart` writes what is noted and starts anew from disk."""

    def __init__(self, folder):
        self.folder = folder
        self.now = 1_000_000.0
        self.store = Store.open(folder)
        self.memory = recover(self.store, nonce="first")

    @property
    def broker(self) -> Broker:
        return self.memory.broker

    def write(self):
        self.store.write(self.broker.journal.take())

    def restart(self, *, writes=True):
        if writes:
            self.write()
        self.store.close()
        self.store = Store.open(self.folder)
        self.memory = recover(self.store, nonce="again")

    def create(self, *subscriptions, topic=TOPIC, **fields):
        self.broker.create_topic(topic, TopicOptions(), protos.Topic(name=topic))
        for name in subscriptions:
            definition = protos.Subscription(
                name=name, topic=topic, ack_deadline_seconds=10, message_retention_duration={"seconds": 600}, **fields
            )
            options = SubscriptionOptions(retention=600.0, retains_acked=definition.retain_acked_messages)
            self.broker.create_subscription(name, topic, options, definition)

    def publish(self, *texts, key="", topic=TOPIC):
        found = self.broker.topic(topic)
        messages, _ = self.broker.prepare(found, [(wire.field(1, t.encode()), key) for t in texts], self.now)
        self.broker.deliver(found, messages)

    def ack(self, count, name=SUBSCRIPTION):
        backlog = self.broker.subscription(name).backlog
        taken = backlog.take(Consumer(10.0), self.now, max_messages=count)
        assert backlog.acknowledge([lease.ack_id for lease in taken], self.now) == []

    def unacked(self, name=SUBSCRIPTION):
        return [texts(message) for message in self.broker.subscription(name).backlog.unacked()]

    def rows(self, table):
        return self.store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def texts(message):
    return protos.PubsubMessage.FromString(message.body).data.decode()


@pytest.fixture
def disk(folder):
    made = Disk(folder)
    yield made
    made.store.close()


def test_a_restart_brings_back_what_was_not_acked_and_nothing_else(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a", "b", "c", key="k")
    disk.ack(1)

    disk.restart()

    (b, c) = disk.broker.subscription(SUBSCRIPTION).backlog.unacked()
    assert [(texts(m), m.key, m.published) for m in (b, c)] == [("b", "k", 1_000_000.0), ("c", "k", 1_000_000.0)]
    assert disk.rows("messages") == 2


def test_a_message_comes_back_byte_for_byte(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a", key="k")
    (before,) = disk.broker.subscription(SUBSCRIPTION).backlog.unacked()

    disk.restart()

    (after,) = disk.broker.subscription(SUBSCRIPTION).backlog.unacked()
    assert (after.frame, after.seq, after.size_bytes, after.body) == (
        before.frame,
        before.seq,
        before.size_bytes,
        before.body,
    )


def test_each_subscription_keeps_its_own_acks_and_the_last_one_removes_the_message(disk):
    other = "projects/p/subscriptions/other"
    disk.create(SUBSCRIPTION, other)
    disk.publish("a", "b")
    disk.ack(2)
    disk.ack(1, other)
    disk.restart()

    assert (disk.unacked(), disk.unacked(other)) == ([], ["b"])
    disk.ack(1, other)
    disk.restart()

    assert [disk.rows(table) for table in ("messages", "acked", "held")] == [0, 0, 0]


def test_acks_that_were_not_written_only_bring_messages_again(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a")
    disk.write()
    disk.ack(1)

    disk.restart(writes=False)

    assert disk.unacked() == ["a"]


def test_numbers_are_never_used_again(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a")
    (first,) = disk.broker.subscription(SUBSCRIPTION).backlog.unacked()
    disk.ack(1)

    disk.restart()
    disk.publish("b")

    (second,) = disk.broker.subscription(SUBSCRIPTION).backlog.unacked()
    assert second.seq > first.seq


def test_a_new_subscription_does_not_get_what_was_published_before_it(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("old")
    late = "projects/p/subscriptions/late"
    definition = protos.Subscription(
        name=late, topic=TOPIC, ack_deadline_seconds=10, message_retention_duration={"seconds": 600}
    )
    disk.broker.create_subscription(late, TOPIC, SubscriptionOptions(), definition)
    disk.publish("new")

    disk.restart()

    assert (disk.unacked(), disk.unacked(late)) == (["old", "new"], ["new"])


def test_snapshots_come_back_with_what_they_hold(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("acked", "held")
    disk.ack(1)
    broker = disk.broker
    broker.create_snapshot("projects/p/snapshots/snap", broker.subscription(SUBSCRIPTION), protos.Snapshot(), disk.now)
    disk.publish("later")
    disk.ack(2)

    disk.restart()

    broker = disk.broker
    assert disk.unacked() == []
    broker.seek_to_snapshot(broker.subscription(SUBSCRIPTION), broker.snapshot("projects/p/snapshots/snap"))
    assert disk.unacked() == ["held", "later"]
    disk.restart()
    assert disk.unacked() == ["held", "later"]


def test_retained_acked_messages_come_back_for_seek(disk):
    disk.create(SUBSCRIPTION, retain_acked_messages=True)
    disk.publish("a", "b")
    disk.ack(1)
    disk.restart()
    assert disk.unacked() == ["b"]

    disk.broker.seek_to_time(disk.broker.subscription(SUBSCRIPTION), 0, disk.now)
    disk.restart()

    assert disk.unacked() == ["a", "b"]


def test_a_subscription_whose_topic_is_deleted_keeps_its_backlog(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a")
    disk.broker.delete_topic(TOPIC)
    disk.create()
    disk.publish("to the new topic of that name")

    disk.restart()

    assert disk.broker.subscription(SUBSCRIPTION).topic_name == "_deleted-topic_"
    assert disk.unacked() == ["a"]


def test_deleted_resources_do_not_come_back(disk):
    disk.create(SUBSCRIPTION)
    disk.publish("a")
    disk.broker.delete_subscription(SUBSCRIPTION)
    disk.broker.delete_topic(TOPIC)

    disk.restart()

    assert (disk.broker.topics, disk.broker.subscriptions, disk.rows("messages")) == ({}, {}, 0)


def test_schemas_and_policies_come_back(disk):
    schema = protos.Schema(type_=2, definition='"string"')
    made = disk.memory.schemas.create("projects/p/schemas/words", schema, disk.now)

    disk.restart()

    assert disk.memory.schemas.get("projects/p/schemas/words") == made


def test_a_failed_write_leaves_nothing_half_done(disk):
    disk.create(SUBSCRIPTION)
    disk.write()
    disk.publish("a")
    runs = disk.broker.journal.take()

    with pytest.raises(sqlite3.IntegrityError):
        disk.store.write([*runs, *runs])

    assert disk.rows("messages") == 0
    disk.store.write(runs)
    assert disk.rows("messages") == 1


def test_a_folder_belongs_to_one_broker(disk, folder):
    with pytest.raises(UsageError, match=r"another broker keeps its data in .*--data"):
        Store.open(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(WorldError, match="cannot keep its data in"):
        Store.open(tmp_path / "file" / "broker")


def test_a_file_that_is_no_store_is_told(folder):
    folder.mkdir()
    (folder / "broker.sqlite3").write_text("something else entirely, and long enough to be read as a page" * 10)

    with pytest.raises(WorldError, match="cannot read its data in"):
        Store.open(folder)


def test_a_store_of_another_version_is_told(folder):
    Store.open(folder).close()
    connection = sqlite3.connect(folder / "broker.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(WorldError, match="another version"):
        Store.open(folder)
