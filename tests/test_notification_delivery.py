"""Notifications: each dedupe key once within the window, none lost in any order of crashes; in every memory alike."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateIndex, CreateTable

from cdc_reactor.causes import MessageCause
from cdc_reactor.database import create_tables, open_engine
from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.execution import Executor
from cdc_reactor.handlers import Context
from cdc_reactor.messages import Message, Verdict
from cdc_reactor.notification_delivery import Delivery, NotificationDelivery, NotificationSink, _upsert, metadata
from cdc_reactor.notifications import Notification
from cdc_reactor.testing import fresh_database
from tests import how_to

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOPIC = "notifications.wanted.v1"


class Crash(Exception):
    pass


def welcome(key: str = "welcome/42", name: str = "ada") -> Notification:
    return Notification(type="welcome", recipients=("42",), context={"name": name}, dedupe_key=key)


def message(message_id: str = "m1", **attributes: str) -> Message:
    return Message(b"{}", attributes, message_id=message_id)


class Stage:
    """Runs notification workers as an executor would: deliver, commit, and what comes after the commit."""

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        self.sent: list[Notification] = []

    def delivery(self, *, window: float = 86_400.0, sink: NotificationSink | None = None, **more: Any) -> Delivery:
        return Delivery(topic=TOPIC, window=window, sink=sink, in_database=self.engine is not None, **more)

    @contextmanager
    def context(self, message: Message, now: datetime = NOON, handler: str = "greet") -> Iterator[Context]:
        opened: list[Session] = []

        def open_session() -> Session:
            assert self.engine is not None, "no database is asked for one"
            if not opened:
                opened.append(Session(self.engine))
            return opened[0]

        log = logging.getLogger("tests.notifications")
        ctx = Context(
            handler=handler, log=log, now=now, open_session=open_session, message=message, cause=MessageCause(message)
        )
        try:
            yield ctx
            for session in opened:
                session.commit()
        finally:
            for session in opened:
                session.close()

    def run(
        self,
        delivery: NotificationDelivery,
        message: Message,
        *notifications: Notification,
        now: datetime = NOON,
        handler: str = "greet",
        crash: str = "",
    ) -> list[Notification]:
        """Return what one run has published; `crash` is "before commit", or "after commit" with nothing sent."""
        with suppress(Crash):
            with self.context(message, now, handler) as ctx:
                finish = delivery.deliver(notifications, ctx)
                if crash == "before commit":
                    raise Crash
            if crash == "after commit":
                raise Crash
            if finish is not None:
                finish()
            return [publication.event for publication in ctx.publications]  # type: ignore[misc]  # it sends no others
        return []


POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@pytest.fixture(params=["process", "sqlite", POSTGRES])
def stage(request) -> Iterator[Stage]:
    """A stage with each of the memories."""
    if request.param == "process":
        yield Stage(None)
    else:
        with engine_of(request) as engine:
            yield Stage(engine)


@pytest.fixture(params=["sqlite", POSTGRES])
def database(request) -> Iterator[Stage]:
    """A stage with each of the databases."""
    with engine_of(request) as engine:
        yield Stage(engine)


@contextmanager
def engine_of(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "postgres":
        with fresh_database(request.getfixturevalue("postgres_url")) as engine:
            create_tables(engine, metadata)
            yield engine
    else:
        engine = open_engine(f"sqlite:///{request.getfixturevalue('tmp_path')}/sent.db")
        create_tables(engine, metadata)
        yield engine
        engine.dispose()


class TestADedupeKey:
    def test_is_sent_once_within_the_window_whatever_message_asks_for_it(self, stage: Stage):
        delivery = stage.delivery(window=3600)

        sent = [
            stage.run(delivery, message("m1"), welcome()),
            stage.run(delivery, message("m2"), welcome(name="another text")),
            stage.run(delivery, message("m3"), welcome(), now=NOON + HOUR - timedelta(microseconds=1)),
            stage.run(delivery, message("m4"), welcome(), now=NOON + HOUR),
            stage.run(delivery, message("m5"), welcome(), now=NOON + HOUR + timedelta(seconds=1)),
        ]

        assert sent == [[welcome()], [], [], [welcome()], []]

    def test_says_nothing_of_other_keys_and_a_notification_without_one_is_always_sent(self, stage: Stage):
        delivery = stage.delivery()
        stage.run(delivery, message("m1"), welcome("a"), welcome("b"))

        sent = stage.run(delivery, message("m2"), welcome(""), welcome("b"), welcome("c"), welcome(""))

        assert sent == [welcome(""), welcome("c"), welcome("")]

    def test_counts_once_in_a_run_and_the_first_is_taken(self, stage: Stage):
        sent = stage.run(stage.delivery(), message(), welcome(name="first"), welcome("b"), welcome(name="second"))

        assert sent == [welcome(name="first"), welcome("b")]

    def test_is_shared_by_all_workers(self, stage: Stage):
        # One event, two subscriptions: both are given the same event id.
        fact = message("m1", event_id="0f3a91c2d47b5e68")
        delivery = stage.delivery()

        assert stage.run(delivery, fact, welcome(), handler="greet") == [welcome()]
        assert stage.run(delivery, fact, welcome(), handler="greet_too") == []
        assert stage.run(delivery, fact, welcome(), handler="greet") == [welcome()]

    @pytest.mark.parametrize("key", ["long/" * 200, "with\0nul", "käsekästchen" * 25, "k" * 255, "k" * 256])
    def test_may_be_any_text(self, stage: Stage, key: str):
        delivery = stage.delivery()

        assert stage.run(delivery, message("m1"), welcome(key)) == [welcome(key)]
        assert stage.run(delivery, message("m2"), welcome(key)) == []
        assert stage.run(delivery, message("m2"), welcome(key + "!")) == [welcome(key + "!")]


class TestAMessageThatComesAgain:
    def test_has_its_notification_sent_again(self, stage: Stage):
        delivery = stage.delivery()

        assert stage.run(delivery, message("m1"), welcome()) == [welcome()]
        assert stage.run(delivery, message("m1"), welcome()) == [welcome()]

    @pytest.mark.parametrize("crash", ["before commit", "after commit"])
    def test_loses_nothing_by_a_crash(self, stage: Stage, crash: str):
        delivery = stage.delivery()
        stage.run(delivery, message("m1"), welcome(), crash=crash)

        assert stage.run(delivery, message("m1"), welcome()) == [welcome()]
        assert stage.run(delivery, message("m2"), welcome()) == []

    def test_is_known_by_its_event_id_first_then_by_the_id_that_a_dead_letter_kept(self, stage: Stage):
        delivery = stage.delivery()
        stage.run(delivery, message("m1", event_id="0f3a91c2d47b5e68"), welcome("by event"))
        stage.run(delivery, message("m1"), welcome("by letter"))

        assert stage.run(delivery, message("m9", event_id="0f3a91c2d47b5e68"), welcome("by event")) == [
            welcome("by event")
        ]
        assert stage.run(delivery, message("m9", cdc_message_id="m1"), welcome("by letter")) == [welcome("by letter")]
        assert stage.run(delivery, message("m9"), welcome("by event"), welcome("by letter")) == []

    def test_publishes_under_the_same_event_id(self, stage: Stage):
        delivery, ids = stage.delivery(), []
        for _ in range(2):
            with stage.context(message("m1")) as ctx:
                delivery.deliver([welcome()], ctx)
            ids += [publication.attributes["event_id"] for publication in ctx.publications]

        assert len(ids) == 2
        assert len(set(ids)) == 1

    def test_after_a_failed_run_of_it_is_still_the_one_that_sent(self, stage: Stage):
        delivery = stage.delivery()
        stage.run(delivery, message("m1"), welcome())
        stage.run(delivery, message("m1"), welcome(), crash="before commit")

        assert stage.run(delivery, message("m2"), welcome()) == []

    def test_without_any_id_is_told_by_its_data(self, stage: Stage):
        delivery = stage.delivery()
        stage.run(delivery, Message(b"one"), welcome())

        assert stage.run(delivery, Message(b"one"), welcome()) == [welcome()]
        assert stage.run(delivery, Message(b"two"), welcome()) == []


class TestAFailedRun:
    def test_leaves_the_key_to_others(self, stage: Stage):
        delivery = stage.delivery()
        if stage.engine is None:
            delivery._memory._patience = 0.0  # type: ignore[attr-defined]  # others do not wait for it
        stage.run(delivery, message("m1"), welcome(), crash="before commit")

        assert stage.run(delivery, message("m2"), welcome()) == [welcome()]
        assert stage.run(delivery, message("m1"), welcome()) == []


class TestPublishing:
    def test_goes_to_the_configured_topic_without_an_ordering_key(self, stage: Stage):
        with stage.context(message()) as ctx:
            stage.delivery().deliver([welcome()], ctx)

        assert [(p.topic, p.key, p.event) for p in ctx.publications] == [(TOPIC, "", welcome())]

    def test_of_nothing_touches_nothing(self):
        stage = Stage(None)
        delivery = Delivery(topic=TOPIC, in_database=True)
        with stage.context(message()) as ctx:
            # Without keys no session is opened, which would fail here.
            assert delivery.deliver([], ctx) is None
            assert delivery.deliver([welcome("")], ctx) is None


class TestASink:
    def test_is_given_what_is_due_after_the_commit_and_nothing_is_published(self, stage: Stage):
        taken: list[Sequence[Notification]] = []
        delivery = stage.delivery(sink=taken.append)
        with stage.context(message()) as ctx:
            finish = delivery.deliver([welcome("a"), welcome("b"), welcome("a")], ctx)
            assert taken == []
        assert finish is not None
        finish()

        assert taken == [[welcome("a"), welcome("b")]]
        assert ctx.publications == []

    def test_is_not_called_where_nothing_is_due(self, stage: Stage):
        taken: list[Sequence[Notification]] = []
        delivery = stage.delivery(sink=taken.append)
        stage.run(delivery, message("m1"), welcome())
        stage.run(delivery, message("m2"), welcome())

        assert taken == [[welcome()]]

    def test_that_fails_is_given_the_same_when_the_message_comes_again(self, stage: Stage):
        taken: list[Sequence[Notification]] = []
        failures = [Crash()]

        def sink(notifications: Sequence[Notification]) -> None:
            if failures:
                raise failures.pop()
            taken.append(notifications)

        delivery = stage.delivery(sink=sink)
        for message_id in ("m1", "m1", "m2"):
            stage.run(delivery, message(message_id), welcome())

        assert taken == [[welcome()]]


class TestTwoRunsAtOnce:
    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_the_second_waits_for_the_first_and_sends_only_where_that_fails(self, stage: Stage, end: str):
        one, two = (stage.delivery(), stage.delivery()) if stage.engine else [stage.delivery()] * 2
        with ThreadPoolExecutor(1) as thread, suppress(Crash):
            with stage.context(message("m1")) as ctx:
                finish = one.deliver([welcome()], ctx)
                second = thread.submit(stage.run, two, message("m2"), welcome())
                wait_until(lambda: is_waiting(stage, two, second))
                if end == "rollback":
                    raise Crash
            if finish is not None:
                finish()

        assert second.result(30) == ([] if end == "commit" else [welcome()])

    def test_keys_in_another_order_do_not_lock_each_other_out(self, stage: Stage):
        deliveries = [stage.delivery(), stage.delivery()] if stage.engine else [stage.delivery()] * 2
        keys = [f"k{n}" for n in range(300)]
        start = threading.Barrier(2)

        def run(n: int) -> int:
            sent = 0
            for turn in range(10):
                ours = [welcome(f"{turn}/{key}") for key in (keys if n else reversed(keys))]
                start.wait(30)
                sent += len(stage.run(deliveries[n], message(f"m{n}/{turn}"), *ours))
            return sent

        with ThreadPoolExecutor(2) as threads:
            assert sum(threads.map(run, range(2))) == 10 * len(keys)


def is_waiting(stage: Stage, delivery: Delivery, second: Future[Any]) -> bool:
    """Tell whether the second run waits for the first one."""
    if stage.engine is None:
        waiters = delivery._memory._confirmed._waiters  # type: ignore[attr-defined]  # the one way to see it
        return bool(waiters)
    if stage.engine.dialect.name == "sqlite":
        # Nobody can see it; it comes later than the first, and has to wait, or it would have its answer.
        return second.running()
    with stage.engine.connect() as connection:
        waiting = connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    return bool(waiting)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        pause.wait(0.005)


class TestTheTable:
    def test_is_pruned_of_expired_rows_a_bounded_number_at_a_time(self, database: Stage):
        delivery = database.delivery(window=3600)
        database.run(delivery, message("m1"), *[welcome(f"old/{n}") for n in range(1_200)])

        def count() -> int:
            with Session(database.engine) as session:
                return session.execute(
                    select(func.count()).select_from(metadata.tables["cdc_reactor_notifications"])
                ).scalar_one()

        left = []
        for n in range(4):
            later = NOON + HOUR + timedelta(seconds=60 + n)
            database.run(delivery, message(f"m{n + 2}"), welcome(f"new/{n}"), now=later)
            left.append(count())

        assert left == [701, 202, 3, 4]

    def test_holds_no_text_and_no_recipient(self, database: Stage):
        database.run(database.delivery(window=3600), message("m1", event_id="0f3a91c2d47b5e68"), welcome())

        with Session(database.engine) as session:
            ((key, cause, *times),) = session.execute(select(metadata.tables["cdc_reactor_notifications"])).all()
        # SQLite keeps no zone; it is UTC.
        assert (key, cause, [time.replace(tzinfo=UTC) for time in times]) == (
            "welcome/42",
            "greet/0f3a91c2d47b5e68",
            [NOON, NOON + HOUR],
        )

    @pytest.mark.postgres
    def test_is_pruned_without_waiting_for_rows_that_others_hold(self, postgres_url):
        with fresh_database(postgres_url) as engine:
            create_tables(engine, metadata)
            stage, later = Stage(engine), NOON + 2 * HOUR
            stage.run(stage.delivery(window=60), message("m1"), welcome("held"), welcome("free"))
            with stage.context(message("m2"), later) as ctx:
                stage.delivery(window=60).deliver([welcome("held")], ctx)
                assert keys_in(engine) == ["free", "held"]
                # Another process; it would wait for ever.
                stage.run(stage.delivery(window=60), message("m3"), welcome("new"), now=later)

            assert keys_in(engine) == ["held", "new"]

    def test_that_is_missing_is_a_failure_of_the_database_and_is_said(self, tmp_path: Path):
        engine = open_engine(f"sqlite:///{tmp_path}/empty.db")
        stage = Stage(engine)
        with pytest.raises(Exception, match="no such table: cdc_reactor_notifications"):
            stage.run(stage.delivery(), message(), welcome())
        engine.dispose()

    def test_of_another_database_is_refused_with_the_cure(self):
        with pytest.raises(WorldError, match="in PostgreSQL or SQLite, not in oracle; give the daemon one of these"):
            _upsert("oracle")


def keys_in(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return sorted(session.scalars(select(metadata.tables["cdc_reactor_notifications"].c.dedupe_key)))


class TestWithoutADatabase:
    def test_only_so_many_keys_are_remembered_the_oldest_is_forgotten_first(self):
        stage = Stage(None)
        delivery = stage.delivery(remembered=2)
        for key in ("a", "b", "c"):
            stage.run(delivery, message("m1"), welcome(key))

        assert stage.run(delivery, message("m2"), welcome("b"), welcome("c")) == []
        assert stage.run(delivery, message("m2"), welcome("a")) == [welcome("a")]

    def test_expired_keys_take_no_room(self):
        stage = Stage(None)
        delivery = stage.delivery(window=60)
        stage.run(delivery, message("m1"), *[welcome(f"k{n}") for n in range(100)])
        stage.run(delivery, message("m2"), welcome("new"), now=NOON + HOUR)

        assert list(delivery._memory._taken) == ["new"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("window", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_window_that_is_no_time_is_refused(window):
    with pytest.raises(
        UsageError, match=r"the window of notifications is .*; it must be seconds above zero, ten years at most"
    ):
        Delivery(topic=TOPIC, window=window)


class TestTheHowTo:
    def test_shows_a_worker_whose_notifications_are_published_once(self, database: Stage, tmp_path: Path):
        page = how_to.load("notify.md", tmp_path)
        executor = Executor(database.engine, delivery=database.delivery())
        upvotes = [page.PostUpvoted(post_id=1, author_id=7, voter_id=voter) for voter in (8, 9, 7)]

        outcomes = [how_to.run(executor, page.tell_author, event, f"m{n}") for n, event in enumerate(upvotes)]

        told = Notification(type="post-upvoted", recipients=("7",), context={"post_id": 1}, dedupe_key="post-upvoted:1")
        assert [how_to.published(outcome) for outcome in outcomes] == [[told], [], []]
        assert [list(outcome.verdicts) for outcome in outcomes] == [[Verdict.ACK]] * 3

    def test_shows_a_sink(self, database: Stage, tmp_path: Path):
        page = how_to.load("notify.md", tmp_path)
        executor = Executor(database.engine, delivery=database.delivery(sink=page.send))

        outcome = how_to.run(executor, page.tell_author, page.PostUpvoted(post_id=1, author_id=7, voter_id=8), "m1")

        assert [n.type for n in page.pushed] == ["post-upvoted"]
        assert outcome.events == []

    def test_shows_the_table_as_it_is(self, database: Stage):
        (shown,) = how_to.blocks_of("notify.md", "sql")
        (table,) = metadata.tables.values()
        (index,) = table.indexes
        dialect = postgresql.dialect()
        wanted = [str(ddl.compile(dialect=dialect)) for ddl in (CreateTable(table), CreateIndex(index))]

        assert "".join(shown.split()) == "".join(f"{'; '.join(wanted)};".split())


def _same(session: Session) -> Session:
    return session


def test_a_key_is_free_again_where_its_sink_refused(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/keys.db")
    metadata.create_all(engine)
    sent: list[str] = []
    is_up = False

    def send(notifications: Sequence[Notification]) -> None:
        if not is_up:
            raise ConnectionError("the gateway is down")
        sent.extend(n.dedupe_key for n in notifications)

    delivery = Delivery(topic="notification.requested.v1", sink=send, in_database=True)
    for message_id in ("first", "second"):
        with Session(engine) as session:
            ctx = Context(
                handler="tell",
                log=logging.getLogger("cdc_reactor"),
                now=datetime.now(UTC),
                open_session=partial(_same, session),
                message=Message(b"{}", message_id=message_id),
            )
            finish = delivery.deliver([Notification(type="liked", recipients=("ada",), dedupe_key="k")], ctx)
            session.commit()
        assert finish is not None, "the key is free"
        if message_id == "first":
            with pytest.raises(ConnectionError):
                finish()
        else:
            is_up = True
            finish()

    assert sent == ["k"]
