"""What becomes of the messages of workers: a daemon in this process between a local broker and workers of the tests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from cdc_reactor import Batch, Context, Event, Message, Notification, Reject, Retry, Row, handles, notifies, subscribes
from cdc_reactor.database import open_engine
from cdc_reactor.errors import UsageError
from cdc_reactor.experiments import ExperimentsInMemory
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from cdc_reactor.notification_delivery import Delivery
from tests.daemon_stage import Running, Stage, change, run, running, running_to_its_end, travel, until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class PostUpvoted(Event, topic="post.upvoted.v1"):
    post_id: int
    voter_id: int = 0


class Counted(Event, topic="post.counted.v1"):
    post_id: int


class User(Row, table="public.users"):
    id: int
    name: str


@pytest.fixture
def stage() -> Iterator[Stage]:
    with LocalBroker.start(clock=VirtualClock()) as broker:
        made = Stage.set_up(broker)
        for topic in ("post.upvoted.v1", "post.counted.v1", "notification.requested.v1", "own-letters"):
            made.create_topic(topic)
        made.subscribe("upvotes", "post.upvoted.v1")
        made.subscribe("counted", "post.counted.v1")
        made.subscribe("notifications", "notification.requested.v1")
        made.subscribe("own-letters", "own-letters")
        yield made
        made.close()


def upvote(post_id: int, voter_id: int = 0, *, key: str = "", **attributes: str) -> Message:
    data = json.dumps({"post_id": post_id, "voter_id": voter_id}).encode()
    return Message(data, attributes, key)


def is_retried(up: Running, times: int) -> bool:
    return up.metric("retries_total", handler="note") == times


def is_done(stage: Stage, subscription: str = "upvotes") -> bool:
    return stage.statistics(subscription)["backlog"] == 0


def test_events_are_read_handled_and_acknowledged(stage):
    seen: list[tuple[PostUpvoted, int, bool]] = []

    @subscribes(PostUpvoted, subscription="upvotes")
    def note(event: PostUpvoted, ctx: Context) -> None:
        published = ctx.message.publish_time
        assert published is not None
        assert published.tzinfo is UTC
        assert isinstance(published, datetime)
        seen.append((event, ctx.attempt, ctx.message.attributes == {"origin": "test"}))

    async def test():
        stage.publish(*(upvote(n, origin="test") for n in range(50)), topic="post.upvoted.v1")
        async with running(stage, note) as up:
            await until(lambda: is_done(stage))
            of_worker = {"worker": "note", "topic": "post.upvoted.v1"}
            assert up.metric("worker_runs_total", attempt="first", **of_worker) == 50
            assert up.metric("worker_seconds_count", **of_worker) == 50
            assert up.metric("publish_to_handled_seconds_count", **of_worker) == 50
            assert up.metric("settlements_total", subscription="upvotes", verdict="ack") == 50

    run(test)

    assert sorted(event.post_id for event, _, _ in seen) == list(range(50))
    assert {(attempt, is_same) for _, attempt, is_same in seen} == {(1, True)}


def test_messages_of_one_ordering_key_are_handled_in_order_and_one_at_a_time(stage):
    seen: list[tuple[int, int]] = []
    at_work: set[int] = set()
    lock = threading.Lock()

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=10)
    def note(event: PostUpvoted, ctx: Context) -> None:
        with lock:
            assert event.post_id not in at_work
            at_work.add(event.post_id)
        with lock:
            seen.append((event.post_id, event.voter_id))
            at_work.discard(event.post_id)
        if (event.post_id, event.voter_id, ctx.attempt) == (3, 7, 1):
            raise Retry("once more", delay=0)

    async def test():
        messages = [upvote(post, n, key=str(post)) for post in range(8) for n in range(25)]
        stage.publish(*messages, topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: is_done(stage), show=lambda: len(seen))

    run(test)

    orders = {post: [n for of, n in seen if of == post] for post in range(8)}
    expected = {post: list(range(25)) for post in range(8)}
    assert orders == {**expected, 3: [*range(8), *range(7, 25)]}


def test_no_more_messages_are_at_work_than_a_worker_wants(stage):
    most = 0
    at_work = 0
    seen: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=3)
    async def note(event: PostUpvoted, ctx: Context) -> None:
        nonlocal most, at_work
        at_work += 1
        most = max(most, at_work)
        for _ in range(5):
            await asyncio.sleep(0)
        at_work -= 1
        seen.append(event.post_id)

    async def test():
        stage.publish(*(upvote(n) for n in range(60)), topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: is_done(stage), show=lambda: len(seen))

    run(test)

    assert sorted(seen) == list(range(60))
    assert most == 3


def test_many_async_messages_wait_at_once_without_a_thread_each(stage):
    gate: asyncio.Event | None = None
    loop: asyncio.AbstractEventLoop | None = None
    waiting = 0

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=200)
    async def note(event: PostUpvoted, ctx: Context) -> None:
        nonlocal gate, loop, waiting
        if gate is None:
            gate, loop = asyncio.Event(), asyncio.get_running_loop()
        waiting += 1
        await gate.wait()

    async def test():
        stage.publish(*(upvote(n) for n in range(200)), topic="post.upvoted.v1")
        before = threading.active_count()
        async with running(stage, note):
            await until(lambda: waiting == 200, show=lambda: waiting)
            assert threading.active_count() - before < 20
            assert gate is not None
            assert loop is not None
            loop.call_soon_threadsafe(gate.set)
            await until(lambda: is_done(stage))

    run(test)


def test_what_cannot_be_read_is_a_dead_letter_at_once_and_names_the_field(stage):
    seen: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes")
    def note(event: PostUpvoted, ctx: Context) -> None:
        seen.append(event.post_id)

    async def test():
        bad = Message(b'{"post_id": "ada@forum.example"}', {"a": "b"}, "k")
        stage.publish(bad, upvote(2, key="k"), topic="post.upvoted.v1")
        async with running(stage, note) as up:
            await until(lambda: seen == [2] and is_done(stage))
            assert up.metric("dead_letters_total", handler="note", table="") == 1

    run(test)

    (letter,) = stage.letters()
    told = {k: v for k, v in letter.attributes.items() if k in ("a", "cdc_error_class", "cdc_error", "cdc_attempts")}
    assert told == {
        "a": "b",
        "cdc_attempts": "1",
        "cdc_error_class": "DecodeError",
        "cdc_error": "PostUpvoted (post.upvoted.v1): post_id: Input should be a valid integer, unable to parse string as "
        "an integer",
    }
    assert (letter.data, letter.ordering_key) == (b'{"post_id": "ada@forum.example"}', "k")


def test_a_failing_message_is_tried_again_and_given_up_after_its_attempts(stage):
    tries: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_attempts=3, dead_letter="own-letters")
    def note(event: PostUpvoted, ctx: Context) -> None:
        if event.post_id == 1:
            tries.append(ctx.attempt)
            raise ZeroDivisionError("1/0")

    async def test():
        stage.publish(upvote(1), upvote(2), topic="post.upvoted.v1")
        async with running(stage, note, retry={"first": 60, "limit": 60}) as up:
            for attempt in (1, 2):
                await until(partial(is_retried, up, attempt))
                travel(60)
            await until(lambda: is_done(stage))

    run(test)

    assert tries == [1, 2, 3]
    (letter,) = stage.take("own-letters")
    assert (letter.attributes["cdc_error_class"], letter.attributes["cdc_handler"]) == ("ZeroDivisionError", "note")
    assert stage.letters() == []


def test_a_rejected_message_is_not_tried_again(stage):
    tries: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes")
    async def note(event: PostUpvoted, ctx: Context) -> None:
        tries.append(event.post_id)
        raise Reject("no such post")

    async def test():
        stage.publish(upvote(1), topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: is_done(stage))

    run(test)

    assert tries == [1]
    assert [letter.attributes["cdc_error"] for letter in stage.letters()] == ["no such post"]


def test_events_of_a_worker_are_published_before_its_message_is_acknowledged(stage, tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/counts.db")
    metadata = MetaData()
    counts = Table("counts", metadata, Column("post", Integer, primary_key=True))
    metadata.create_all(engine)

    @subscribes(PostUpvoted, subscription="upvotes")
    def count(event: PostUpvoted, ctx: Context) -> None:
        ctx.session.execute(insert(counts), {"post": event.post_id})
        ctx.publish(Counted(post_id=event.post_id), key=str(event.post_id))

    async def test():
        message = upvote(7, traceparent=TRACE, event_id="fixed")
        stage.publish(message, topic="post.upvoted.v1")
        async with running(stage, count, engine=engine):
            await until(lambda: is_done(stage))

    run(test)

    with engine.connect() as connection:
        assert list(connection.scalars(select(counts.c.post))) == [7]
    (counted,) = stage.take("counted")
    assert json.loads(counted.data) == {"post_id": 7}
    assert counted.ordering_key == "7"
    assert counted.attributes["traceparent"] == TRACE
    assert len(counted.attributes["event_id"]) == 32


def test_a_slow_worker_leaves_room_for_the_others(stage):
    gate = threading.Event()
    started = threading.Semaphore(0)
    quick: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=100)
    def slow(event: PostUpvoted, ctx: Context) -> None:
        started.release()
        gate.wait(20)

    @subscribes(Counted, subscription="counted")
    def fast(event: Counted, ctx: Context) -> None:
        quick.append(event.post_id)

    async def test():
        stage.publish(*(upvote(n) for n in range(100)), topic="post.upvoted.v1")
        async with running(stage, slow, fast, run={"worker_threads": 4}):
            await until(lambda: started.acquire(blocking=False))
            counted = [Message(json.dumps({"post_id": n}).encode()) for n in range(30)]
            stage.publish(*counted, topic="post.counted.v1")
            await until(lambda: len(quick) == 30, show=lambda: quick)
            gate.set()
            await until(lambda: is_done(stage))

    run(test)

    assert sorted(quick) == list(range(30))


def test_table_handlers_and_workers_run_side_by_side(stage):
    handled: list[str] = []

    @handles(User, max_wait=0)
    def upvote_them(batch: Batch[User], ctx: Context) -> None:
        for row in batch:
            ctx.publish(PostUpvoted(post_id=row.after.id if row.after is not None else 0))

    @subscribes(PostUpvoted, subscription="upvotes")
    def note(event: PostUpvoted, ctx: Context) -> None:
        handled.append(f"{event.post_id}")

    async def test():
        async with running(stage, upvote_them, note) as up:
            stage.publish(change(1, "a"), change(2, "b"))
            await until(lambda: sorted(handled) == ["1", "2"] and is_done(stage) and stage.is_done())
            assert up.why_not_ready() == []

    run(test)


def test_a_raw_worker_gets_the_untouched_message(stage):
    seen: list[tuple[bytes, dict[str, str]]] = []

    @subscribes(Message, topic="post.upvoted.v1", subscription="upvotes")
    def note(message: Message, ctx: Context) -> None:
        seen.append((message.data, dict(message.attributes)))

    async def test():
        stage.publish(Message(b"\xff\x00 anything", {"a": "b"}), topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: is_done(stage))

    run(test)

    assert seen == [(b"\xff\x00 anything", {"a": "b"})]


def test_notifications_are_published_and_a_dedupe_key_is_sent_once(stage):
    @notifies(PostUpvoted, subscription="upvotes", max_messages=1)
    def tell(event: PostUpvoted, ctx: Context) -> list[Notification] | None:
        if event.post_id == 0:
            return None
        return [Notification(type="upvoted", recipients=("ada",), dedupe_key=f"post {event.post_id}")]

    async def test():
        stage.publish(upvote(0), upvote(1, 1), upvote(1, 2), upvote(2), topic="post.upvoted.v1")
        delivery = Delivery(topic="notification.requested.v1", in_database=False)
        async with running(stage, tell, delivery=delivery):
            await until(lambda: is_done(stage))

    run(test)

    sent = [json.loads(message.data)["dedupe_key"] for message in stage.take("notifications")]
    assert sorted(sent) == ["post 1", "post 2"]


def test_allocations_are_flushed_before_the_acknowledgement_and_a_failed_flush_is_a_failed_run(stage):
    client = ExperimentsInMemory({"colour": "red"})
    client.fail_next_flush = ConnectionError("not now")
    tries: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes")
    def note(event: PostUpvoted, ctx: Context) -> None:
        tries.append(ctx.attempt)
        assert ctx.experiments.allocate("colour", user_id="ada", default="blue") == "red"

    async def test():
        stage.publish(upvote(1), topic="post.upvoted.v1")
        async with running(stage, note, experiments=client, retry={"first": 0.01, "limit": 0.01}):
            await until(lambda: is_done(stage))

    run(test)

    assert tries == [1, 2]
    assert [(a.experiment, a.user_id, a.value) for a in client.flushed] == [("colour", "ada", "red")]


def test_what_has_not_begun_goes_back_when_the_daemon_drains(stage):
    gate = threading.Event()
    begun: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=2)
    def note(event: PostUpvoted, ctx: Context) -> None:
        begun.append(event.post_id)
        gate.wait(20)

    async def test():
        stage.publish(*(upvote(n, key="one") for n in range(10)), topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: len(begun) == 1)
            gate.set()

    run(test)

    left = [json.loads(message.data)["post_id"] for message in stage.take("upvotes")]
    assert left == list(range(len(begun), 10))


@pytest.mark.parametrize(
    ("subscription", "topic", "says"),
    [
        ("nowhere", "post.upvoted.v1", "nowhere"),
        ("counted", "post.upvoted.v1", r"counted is of the topic post\.counted\.v1, but its worker note .* reads"),
    ],
)
def test_a_worker_whose_subscription_is_not_right_ends_the_start(stage, subscription, topic, says):
    @subscribes(Message, topic=topic, subscription=subscription)
    def note(message: Message, ctx: Context) -> None:
        raise AssertionError("nothing comes")

    async def test():
        with pytest.raises(UsageError, match=says):
            await running_to_its_end(stage, note)

    run(test)


def test_missing_topics_and_subscriptions_are_created_where_that_is_wanted(stage):
    seen: list[Any] = []

    @subscribes(Message, topic="new.topic.v1", subscription="new-one", dead_letter="new-letters", ordered=False)
    def note(message: Message, ctx: Context) -> None:
        seen.append(message.data)

    async def test():
        async with running(stage, note, create_missing=True):
            stage.publish(Message(b"x"), topic="new.topic.v1")
            stage.publish(Message(b"y"), topic="new-letters")
            await until(lambda: seen == [b"x"])

    run(test)


@pytest.mark.parametrize("keys", [["bad"], [""], ["a", "b"]], ids=["one key", "no key", "two keys"])
def test_messages_that_wait_to_be_tried_again_leave_room_for_others(stage, keys):
    seen: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=1)
    def note(event: PostUpvoted, ctx: Context) -> None:
        if event.voter_id:
            raise Retry("not now", delay=1_000)
        seen.append(event.post_id)

    async def test():
        stage.publish(*(upvote(n, 1, key=keys[n % len(keys)]) for n in range(30)), topic="post.upvoted.v1")
        stage.publish(*(upvote(n, key="good") for n in range(10)), topic="post.upvoted.v1")
        async with running(stage, note):
            await until(lambda: len(seen) == 10, show=lambda: (seen, stage.statistics("upvotes")))

    run(test)

    assert seen == list(range(10))


def test_parking_a_message_without_a_key_keeps_nothing_back(stage):
    seen: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", on_poison="park", max_attempts=1)
    def note(event: PostUpvoted, ctx: Context) -> None:
        if event.voter_id:
            raise Reject("no")
        seen.append(event.post_id)

    async def test():
        async with running(stage, note) as up:
            keyed = [upvote(1, 1, key="k"), upvote(2, key="k"), upvote(3, key="other")]
            stage.publish(*keyed, upvote(4, 1), upvote(5), topic="post.upvoted.v1")
            await until(lambda: is_done(stage))
            consumer, _ = up.daemon._consumers["upvotes"]
            (queue,) = consumer._reactor._queues.values()
            assert queue.parked == {"k"}

    run(test)

    assert sorted(seen) == [3, 5]
    reasons = sorted(letter.attributes["cdc_error"] for letter in stage.letters())
    assert reasons == ["no", "no", "what came before it in its lane is parked"]


def test_a_slow_async_worker_leaves_room_for_the_others(stage):
    release: list[asyncio.Event] = []
    waiting = 0
    quick: list[int] = []

    @subscribes(PostUpvoted, subscription="upvotes", max_messages=1_500)
    async def slow(event: PostUpvoted, ctx: Context) -> None:
        nonlocal waiting
        if not release:
            release.append(asyncio.Event())
        waiting += 1
        await release[0].wait()

    @subscribes(Counted, subscription="counted")
    async def fast(event: Counted, ctx: Context) -> None:
        quick.append(event.post_id)
        if len(quick) == 5:
            release[0].set()

    async def test():
        for _ in range(2):
            stage.publish(*(upvote(n) for n in range(600)), topic="post.upvoted.v1")
        async with running(stage, slow, fast):
            await until(lambda: waiting == 1_200, show=lambda: waiting)
            counted = [Message(json.dumps({"post_id": n}).encode()) for n in range(5)]
            stage.publish(*counted, topic="post.counted.v1")
            await until(lambda: is_done(stage) and is_done(stage, "counted"))

    run(test)

    assert sorted(quick) == list(range(5))
