"""The Harness for workers, and what is expected of one message: real encoding, reading, transactions, retries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, select, text

from cdc_reactor import (
    Allocation,
    Batch,
    Context,
    Event,
    ExperimentsInMemory,
    Message,
    Notification,
    ProtobufEvent,
    Reject,
    Retry,
    Row,
    Worker,
    handles,
    notifies,
    subscribes,
)
from cdc_reactor.errors import WorldError
from cdc_reactor.events import EVENT_ID
from cdc_reactor.testing import (
    Harness,
    Run,
    assert_registered,
    expect_acked,
    expect_dead_lettered,
    expect_nacked,
    fresh_database,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ADA = UUID(int=1)

# Found by its name, as in a team's module.
metadata = MetaData()
scores = Table("scores", metadata, Column("n", Integer, primary_key=True), Column("author", Text))
# Of another package, and used by a worker here.
posts = Table("posts", MetaData(), Column("author", Text))


class Vote(Row, table="public.votes"):
    id: int
    author: UUID


class PostUpvoted(Event, topic="post.upvoted.v1", key="author"):
    author: UUID


class ReputationChanged(Event, topic="reputation.changed.v1"):
    author: UUID
    by: int = 1


@handles(Vote)
def announce(batch: Batch[Vote], ctx: Context) -> None:
    for change in batch:
        if change.after is not None:
            ctx.publish(PostUpvoted(author=change.after.author))


@subscribes(PostUpvoted, subscription="post-upvoted-rep")
def add_reputation(event: PostUpvoted, ctx: Context) -> None:
    ctx.session.execute(insert(scores).values(author=str(event.author)))
    ctx.publish(ReputationChanged(author=event.author))


@notifies(ReputationChanged, subscription="reputation-changed-mail")
def congratulate(event: ReputationChanged, ctx: Context) -> Notification | None:
    if event.by <= 0:
        return None
    return Notification(type="reputation", recipients=(str(event.author),), dedupe_key=f"reputation/{event.author}")


CONGRATULATION = Notification(type="reputation", recipients=(str(ADA),), dedupe_key=f"reputation/{ADA}")


def scored(run: Run) -> list[str | None]:
    with run.session as session:
        return list(session.scalars(select(scores.c.author).order_by(scores.c.n)))


def spy(event: Any, **options: Any) -> tuple[Worker[Any], list[Any]]:
    """Make a worker that writes down what it is given, with the message."""
    seen: list[Any] = []

    def see(event: Any, ctx: Context) -> None:
        seen.append((event, ctx.message))

    return subscribes(event, subscription="see-all", **options)(see), seen


class TestAHarnessOfAWorker:
    def test_sends_events_as_their_publisher_would(self):
        see, seen = spy(PostUpvoted)

        run = Harness(see, now=NOON).publish(PostUpvoted(author=ADA), attributes={"tenant": "a"}).run().expect_acked()

        ((event, message),) = seen
        assert event == PostUpvoted(author=ADA)
        assert (json.loads(message.data), message.ordering_key, message.publish_time) == (
            {"author": str(ADA)},
            str(ADA),
            NOON,
        )
        assert re.fullmatch(
            r"tenant [0-9a-f]{32}", f"{' '.join(message.attributes.keys() - {EVENT_ID})} {message.attributes[EVENT_ID]}"
        )
        assert (run.acked, run.runs, run.events, run.notifications, run.failures) == (1, 1, [], [], [])

    def test_gives_each_event_an_id_of_its_own(self):
        see, seen = spy(PostUpvoted)

        Harness(see).publish(PostUpvoted(author=ADA)).publish(PostUpvoted(author=ADA), key="k").run().expect_acked()

        (_, one), (_, other) = seen
        assert (one.attributes[EVENT_ID] != other.attributes[EVENT_ID], one.message_id != other.message_id) == (
            True,
            True,
        )
        assert (one.ordering_key, other.ordering_key) == (str(ADA), "k")

    @pytest.mark.parametrize("encoding", ["protobuf", "protobuf-json"])
    def test_sends_protobuf(self, encoding):
        struck = ProtobufEvent(Timestamp, topic="clock.struck.v1", encoding=encoding, key="seconds")
        see, seen = spy(struck)

        Harness(see).publish(struck(Timestamp(seconds=7))).run().expect_acked()

        ((event, message),) = seen
        assert (event, message.ordering_key) == (Timestamp(seconds=7), "7")
        assert message.data == (
            Timestamp(seconds=7).SerializeToString() if encoding == "protobuf" else b'"1970-01-01T00:00:07Z"'
        )

    def test_sends_any_bytes_to_a_topic_or_a_worker(self):
        see, seen = spy(Message, topic="anything.v1")
        whole = Message(b"3", {"a": "b"}, "key", "id-3", NOON)

        harness = Harness(see).message("anything.v1", b"\xff", key="k", attributes={"x": "y"}).message(see, b"")
        harness.message(see, whole).run().expect_acked()

        assert [(event.data, event.ordering_key, dict(event.attributes)) for event, _ in seen] == [
            (b"\xff", "k", {"x": "y"}),
            (b"", "", {}),
            (b"3", "key", {"a": "b"}),
        ]
        assert seen[2][0] is whole

    def test_runs_async_workers_too(self):
        @subscribes(PostUpvoted, subscription="later")
        async def later(event: PostUpvoted, ctx: Context) -> None:
            ctx.session.execute(insert(scores).values(author="later"))
            ctx.publish(ReputationChanged(author=event.author))

        run = Harness(later).publish(PostUpvoted(author=ADA)).run().expect_acked()

        assert (scored(run), run.events) == (["later"], [ReputationChanged(author=ADA)])

    def test_retries_at_once_on_a_clock_that_jumps(self):
        times = []

        @subscribes(PostUpvoted, subscription="patient")
        def patient(event: PostUpvoted, ctx: Context) -> None:
            times.append((ctx.now - NOON).total_seconds())
            if ctx.attempt < 3:
                raise Retry("busy", delay=3600)

        run = Harness(patient, now=NOON).publish(PostUpvoted(author=ADA)).run().expect_acked()

        assert times == [0.0, 3600.0, 7200.0]
        assert [failure.told for failure in run.failures] == ["busy", "busy"]

    def test_keeps_the_order_of_a_key(self):
        seen = []

        @subscribes(ReputationChanged, subscription="in-order")
        def in_order(event: ReputationChanged, ctx: Context) -> None:
            if event.by == 1 and ctx.attempt == 1:
                raise Retry("busy")
            seen.append(event.by)

        harness = Harness(in_order)
        for by, key in [(1, "a"), (2, "a"), (3, "b"), (4, "")]:
            harness.publish(ReputationChanged(author=ADA, by=by), key=key)
        harness.run().expect_acked()

        assert seen == [3, 4, 1, 2]

    def test_tells_what_is_wrong_with_a_corrupt_message_and_handles_the_next(self):
        harness = (
            Harness(add_reputation).message(add_reputation, b'{"author": "nobody"}').publish(PostUpvoted(author=ADA))
        )

        run = harness.run()

        (letter,) = run.dead_letters
        assert (letter.handler, letter.attempts, run.acked, scored(run)) == ("add_reputation", 1, 1, [str(ADA)])
        assert re.match(r"PostUpvoted \(post\.upvoted\.v1\): author: Input should be a valid UUID", letter.reason)

    def test_stops_at_the_first_failure_if_asked_to(self):
        calls = []

        @subscribes(PostUpvoted, subscription="fails-once")
        def fails_once(event: PostUpvoted, ctx: Context) -> None:
            calls.append(ctx.attempt)
            ctx.session.execute(insert(scores).values(author="half"))
            if ctx.attempt == 1:
                raise RuntimeError("once")

        harness = Harness(fails_once).publish(PostUpvoted(author=ADA))
        run = harness.run(until_failure=True)

        assert (run.nacked, run.acked, calls, scored(run)) == (1, 0, [1], [])
        assert (harness.redeliver().run().acked, calls) == (1, [1, 1, 2])

    @pytest.mark.parametrize(
        ("misuse", "message"),
        [
            (lambda h: h.publish({"author": ADA}), "a dict is no event; publish an Event, or what a ProtobufEvent makes"),
            (lambda h: h.publish(ReputationChanged(author=ADA)), "no worker here subscribes to 'reputation.changed.v1'; there are add_reputation of post.upvoted.v1"),
            (lambda h: h.message("oops", b""), "no worker here subscribes to 'oops'; there are add_reputation of"),
            (lambda h: h.insert(id=1), "no handler of changes is here, only add_reputation of post.upvoted.v1: publish events"),
            (lambda h: h.raw(b"{}"), "no handler of changes is here"),
            (lambda h: h.replay_file("a.ndjson"), "no handler of changes is here"),
        ],
    )  # fmt: skip
    def test_tells_misuse_at_once(self, misuse, message):
        with pytest.raises(TypeError) as told:
            misuse(Harness(add_reputation))

        assert str(told.value).startswith(message)


class TestAHarnessOfHandlersAndWorkers:
    def test_passes_on_what_is_published_from_bytes_to_rows(self):
        harness = Harness(announce, add_reputation, congratulate).insert(id=1, author=ADA)

        run = harness.run().expect_acked()

        assert scored(run) == [str(ADA)]
        assert run.events == [PostUpvoted(author=ADA), ReputationChanged(author=ADA)]
        assert run.notifications == [CONGRATULATION]
        assert (run.acked, run.runs, len(run.publications)) == (3, 3, 3)
        assert repr(run) == "<Run: 3 acked, 0 nacked, 0 dead letters, 2 events, 1 notifications, 3 runs>"

    def test_gives_a_change_that_comes_again_the_same_events(self):
        see, seen = spy(PostUpvoted)
        harness = Harness(announce, see).insert(id=1, author=ADA)

        harness.run()
        harness.redeliver().run()

        ids = [message.attributes[EVENT_ID] for _, message in seen]
        assert (len(ids), len(set(ids))) == (2, 1)

    def test_lets_all_workers_of_a_topic_have_an_event(self):
        see, seen = spy(PostUpvoted)

        run = Harness(announce, see, add_reputation).insert(id=1, author=ADA).run().expect_acked()

        assert ([event for event, _ in seen], scored(run)) == ([PostUpvoted(author=ADA)], [str(ADA)])

    def test_passes_on_nothing_that_was_rolled_back(self):
        @handles(Vote, max_attempts=2)
        def broken(batch: Batch[Vote], ctx: Context) -> None:
            ctx.publish(PostUpvoted(author=ADA))
            raise RuntimeError("after publishing")

        see, seen = spy(PostUpvoted)

        run = Harness(broken, see).insert(id=1, author=ADA).run()

        assert (len(run.dead_letters), run.events, seen) == (1, [], [])

    def test_tells_workers_that_run_in_a_circle(self):
        @subscribes(PostUpvoted, subscription="there")
        def there(event: PostUpvoted, ctx: Context) -> None:
            ctx.publish(ReputationChanged(author=event.author))

        @subscribes(ReputationChanged, subscription="and-back")
        def and_back(event: ReputationChanged, ctx: Context) -> None:
            ctx.publish(PostUpvoted(author=event.author))

        with pytest.raises(
            AssertionError,
            match=r"after 10,000 messages .* no end in sight: there \(post\.upvoted\.v1\) publishes to reputation\.changed\.v1; and_back",
        ):
            Harness(there, and_back).publish(PostUpvoted(author=ADA)).run()


class TestNotifications:
    def test_with_one_dedupe_key_are_sent_once(self):
        harness = Harness(congratulate).publish(ReputationChanged(author=ADA)).publish(ReputationChanged(author=ADA))

        assert harness.run().expect_acked().notifications == [CONGRATULATION]
        assert harness.publish(ReputationChanged(author=ADA)).run().expect_acked().notifications == []

    def test_are_sent_again_with_a_message_that_comes_again(self):
        harness = Harness(congratulate).publish(ReputationChanged(author=ADA))

        assert [harness.run().notifications, harness.redeliver().run().notifications] == [[CONGRATULATION]] * 2

    def test_reach_the_workers_that_subscribe_to_their_topic(self):
        see, seen = spy(Notification)

        Harness(congratulate, see).publish(ReputationChanged(author=ADA)).run().expect_acked()

        assert [event for event, _ in seen] == [CONGRATULATION]

    def test_need_no_worker_that_returns_some(self):
        assert (
            Harness(congratulate).publish(ReputationChanged(author=ADA, by=-1)).run().expect_acked().notifications == []
        )


@subscribes(PostUpvoted, subscription="layouts")
def lay_out(event: PostUpvoted, ctx: Context) -> None:
    layout = ctx.experiments.allocate("layout", user_id=str(event.author), default="wide")
    ctx.session.execute(insert(scores).values(author=layout))


class TestExperiments:
    def test_give_everybody_the_default_unless_one_is_given(self):
        run = Harness(lay_out).publish(PostUpvoted(author=ADA)).run().expect_acked()

        assert (scored(run), run.allocations) == (["wide"], [])

    def test_are_seen_in_the_run_that_flushed_them(self):
        harness = Harness(lay_out, experiments=ExperimentsInMemory({"layout": "narrow"})).publish(
            PostUpvoted(author=ADA)
        )

        first, second = harness.run().expect_acked(), harness.publish(PostUpvoted(author=UUID(int=2))).run()

        assert scored(second) == ["narrow", "narrow"]
        assert first.allocations == [Allocation("layout", "narrow", str(ADA), "narrow")]
        assert second.allocations == [Allocation("layout", "narrow", str(UUID(int=2)), "narrow")]

    def test_whose_flush_fails_fail_the_attempt(self):
        client = ExperimentsInMemory({"layout": "narrow"})
        client.fail_next_flush = RuntimeError("the sink is full")

        run = expect_nacked(lay_out, PostUpvoted(author=ADA), experiments=client)

        assert (scored(run), run.allocations) == ([], [])


@subscribes(PostUpvoted, subscription="poisoned", max_attempts=3)
def poisoned(event: PostUpvoted, ctx: Context) -> None:
    raise RuntimeError("never")


@subscribes(PostUpvoted, subscription="second-time")
def second_time(event: PostUpvoted, ctx: Context) -> None:
    if ctx.attempt == 1:
        raise Retry("not yet")


@subscribes(PostUpvoted, subscription="rejects")
def rejects(event: PostUpvoted, ctx: Context) -> None:
    raise Reject("an unknown author")


@subscribes(PostUpvoted, subscription="no-world")
def without_a_world(event: PostUpvoted, ctx: Context) -> None:
    raise WorldError("the CRM is down")


@subscribes(PostUpvoted, subscription="no-table")
def without_a_table(event: PostUpvoted, ctx: Context) -> None:
    ctx.session.execute(text("INSERT INTO elsewhere VALUES (1)"))


@subscribes(PostUpvoted, subscription="halts", on_poison="halt", max_attempts=2)
def halts(event: PostUpvoted, ctx: Context) -> None:
    raise RuntimeError("never")


@dataclass(frozen=True)
class Click:
    x: int


def read_click(message: Message) -> Click:
    return Click(**json.loads(message.data))


@subscribes(Click, subscription="clicks", topic="click.v1", parse=read_click)
def count_click(click: Click, ctx: Context) -> None:
    ctx.session.execute(insert(scores).values(author=str(click.x)))


@subscribes(Timestamp, subscription="clock-ticked", topic="clock.ticked.v1")
def tick(time: Timestamp, ctx: Context) -> None:
    ctx.session.execute(insert(scores).values(author=f"{time.seconds} {ctx.message.ordering_key}"))


UPVOTE = PostUpvoted(author=ADA)


class TestExpectations:
    def test_are_met(self):
        assert scored(expect_acked(add_reputation, UPVOTE)) == [str(ADA)]
        assert expect_nacked(second_time, UPVOTE).nacked == 1
        assert expect_nacked(poisoned, UPVOTE).runs == 1
        assert expect_nacked(without_a_world, UPVOTE).pauses == ["the CRM is down"]
        assert expect_dead_lettered(rejects, UPVOTE, match="unknown author").dead_letters[0].attempts == 1
        assert (
            expect_dead_lettered(poisoned, UPVOTE, match=r"^RuntimeError at .*: never$").dead_letters[0].attempts == 3
        )
        assert expect_dead_lettered(add_reputation, b"{}", match="author: Field required").runs == 1

    def test_are_of_the_database_that_is_given(self):
        with fresh_database() as engine:
            assert expect_acked(add_reputation, UPVOTE, engine=engine).engine is engine
            assert scored(expect_acked(add_reputation, UPVOTE, engine=engine)) == [str(ADA)] * 2

    def test_take_what_the_worker_takes(self):
        ticked = ProtobufEvent(Timestamp, topic="clock.ticked.v1")

        assert scored(expect_acked(count_click, b'{"x":1}')) == ["1"]
        assert scored(expect_acked(count_click, Message(b'{"x":2}'))) == ["2"]
        assert scored(expect_acked(tick, Timestamp(seconds=3), key="a")) == ["3 a"]
        assert scored(expect_acked(tick, ticked(Timestamp(seconds=4)))) == ["4 "]
        assert scored(expect_acked(tick, Message(b"", ordering_key="b", message_id="1"))) == ["0 b"]

    @pytest.mark.parametrize(
        ("worker", "sent", "message"),
        [
            (add_reputation, ReputationChanged(author=ADA), "add_reputation subscribes to post.upvoted.v1 (PostUpvoted); this ReputationChanged is of reputation.changed.v1"),
            (add_reputation, {"author": ADA}, "add_reputation subscribes to post.upvoted.v1 (PostUpvoted); this dict is no event: send the bytes, or a Message"),
            (count_click, Click(1), "count_click subscribes to click.v1 (Click); this Click is no event: send the bytes, or a Message"),
            (tick, Struct(), "tick subscribes to clock.ticked.v1 (Timestamp); this Struct is no event"),
        ],
    )  # fmt: skip
    def test_refuse_what_the_worker_never_gets(self, worker, sent, message):
        with pytest.raises(TypeError) as told:
            expect_acked(worker, sent)

        assert str(told.value).startswith(message)

    def test_refuse_a_message_with_a_second_key(self):
        with pytest.raises(TypeError, match="a Message has its own key"):
            expect_acked(add_reputation, Message(b""), key="a")

    @pytest.mark.parametrize(
        ("expect", "worker", "told", "cause"),
        [
            (expect_acked, poisoned, r"to be acknowledged, but it was given back \(NACK\): RuntimeError at test_worker_testing\.py:\d+: never", RuntimeError),
            (expect_acked, second_time, r"to be acknowledged, but it was given back \(NACK\): not yet", Retry),
            (expect_acked, rejects, r"to be acknowledged, but it was a dead letter after attempt 1: an unknown author", Reject),
            (expect_acked, without_a_world, r"to be acknowledged, but it was given back \(NACK\): the CRM is down", None),
            (expect_acked, without_a_table, r"given back \(NACK\): the database is not set up for this handler: no such table: elsewhere", None),
            (expect_nacked, add_reputation, r"to be tried again, but it was acknowledged$", None),
            (expect_nacked, rejects, r"to be tried again, but it was a dead letter after attempt 1", Reject),
            (expect_dead_lettered, add_reputation, r"to be a dead letter, but it was acknowledged$", None),
            (expect_dead_lettered, second_time, r"to be a dead letter, but it was acknowledged after 1 failed attempts: not yet", Retry),
            (expect_dead_lettered, halts, r"to be a dead letter, but it was kept, and its worker halted: RuntimeError", RuntimeError),
            (expect_dead_lettered, without_a_world, r"waits for the world, of which no message dies: the CRM is down", WorldError),
        ],
    )  # fmt: skip
    def test_that_are_not_met_tell_the_verdict_and_come_from_the_cause(self, expect, worker, told, cause):
        with pytest.raises(AssertionError, match=told) as failed:
            expect(worker, UPVOTE)

        assert str(failed.value).startswith(f"{worker.name} ({worker.place})")
        assert type(failed.value.__cause__) is (cause or type(None))

    def test_have_the_tables_that_the_worker_imports(self):
        @subscribes(PostUpvoted, subscription="looks")
        def look(event: PostUpvoted, ctx: Context) -> None:
            if ctx.session.scalar(select(posts.c.author)) is None:
                raise Retry("no author yet")

        expect_nacked(look, UPVOTE, match="^no author yet$")
        with pytest.raises(AssertionError, match="to be tried again, but not for 'late': no author yet") as failed:
            expect_nacked(look, UPVOTE, match="late")
        assert type(failed.value.__cause__) is Retry

    def test_of_another_reason_are_not_met(self):
        with pytest.raises(AssertionError, match="a dead letter, but not for 'too old': an unknown author") as failed:
            expect_dead_lettered(rejects, UPVOTE, match="too old")

        assert type(failed.value.__cause__) is Reject


class TestRegistration:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        name = f"workers_{uuid4().hex}"
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / name).mkdir()
        return tmp_path / name

    def declare(self, package, module: str, **workers: str) -> Any:
        """Write a module of workers, by name and subscription, and import it."""
        head = "from cdc_reactor import Message, subscribes\n"
        body = "".join(
            f"@subscribes(Message, subscription={subscription!r}, topic='a.v1')\ndef {name}(m, ctx): ...\n"
            for name, subscription in workers.items()
        )
        (package / f"{module}.py").write_text(head + body)
        import importlib

        return importlib.import_module(f"{package.name}.{module}")

    def test_is_seen(self, package):
        module = self.declare(package, "a", one="sub-one", two="sub-two")

        assert_registered(module.one, package=package.name)

    def test_is_looked_for_where_workers_stand(self):
        with pytest.raises(AssertionError, match=r"add_reputation \(.*\) is not found in workers: it must stand at"):
            assert_registered(add_reputation)

    def test_fails_where_another_has_the_subscription(self, package):
        module = self.declare(package, "a", one="sub-one", two="sub-one")

        with pytest.raises(
            AssertionError, match=r"one \(.*\) has the subscription of two \(.*\), sub-one; each would get"
        ):
            assert_registered(module.one, package=package.name)

    def test_fails_where_another_has_the_name(self, package):
        module = self.declare(package, "a", one="sub-one")
        self.declare(package, "b", one="sub-two")

        with pytest.raises(AssertionError, match=r"one \(.*a\.py:2\) has the name of .*b\.py:2; the daemon refuses"):
            assert_registered(module.one, package=package.name)


@pytest.mark.postgres
def test_the_whole_way_is_the_same_on_postgresql(postgres_url):
    with fresh_database(postgres_url) as engine:
        harness = Harness(announce, add_reputation, congratulate, engine=engine).insert(id=1, author=ADA)

        first, again = harness.run().expect_acked(), harness.redeliver().run().expect_acked()

        assert (scored(again), first.notifications, again.notifications) == (
            [str(ADA)] * 2,
            [CONGRATULATION],
            [CONGRATULATION],
        )
