"""What becomes of messages: a daemon in this process between a local broker and handlers of the tests."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select

from cdc_reactor import Batch, Context, Event, Reject, Retry, Row, handles
from cdc_reactor.database import open_engine
from cdc_reactor.errors import Stopped, WorldError
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from cdc_reactor.messages import Message
from cdc_reactor.schemas import open_schemas
from tests.daemon_stage import Stage, change, names, run, running, running_to_its_end, told, travel, until

CAPTURES = Path(__file__).parent / "captures"


class User(Row, table="public.users"):
    id: int
    name: str


class Post(Row, table="public.posts"):
    id: int
    name: str


class Named(Event, topic="user.named.v1"):
    user_id: int
    name: str


@pytest.fixture
def stage() -> Iterator[Stage]:
    with LocalBroker.start(clock=VirtualClock()) as broker:
        made = Stage.set_up(broker)
        yield made
        made.close()


# ── the way of a change ──


def test_changes_of_each_row_are_handled_in_order_and_acknowledged(stage):
    seen: list[tuple[int, str]] = []
    lock = threading.Lock()

    @handles(User, max_size=7, max_wait=0.01)
    def note(batch: Batch[User], ctx: Context) -> None:
        with lock:
            seen.extend(told(batch))

    async def test():
        for half in (range(15), range(15, 30)):
            stage.publish(*(change(row, str(n)) for row in range(20) for n in half))
        async with running(stage, note):
            await until(lambda: len(seen) == 600)
            await until(stage.is_done)

    run(test)

    assert {row: [name for of, name in seen if of == row] for row in range(20)} == {
        row: [str(n) for n in range(30)] for row in range(20)
    }
    assert stage.letters() == []


def test_what_is_no_change_is_acknowledged_and_counted(stage):
    @handles(User)
    def note(batch: Batch[User], ctx: Context) -> None:
        raise AssertionError("nothing of this is a change of a user")

    source = {"connector": "postgresql", "name": "forum", "schema": "public", "table": "users"}
    no_changes = [
        Message(b'{"ts_ms":1700000000000}', ordering_key="heartbeat"),
        Message(b"", {"tombstone": "yes"}, ordering_key='{"id":1}'),
        Message(b'{"status":"BEGIN","id":"7:1","event_count":null,"data_collections":null,"ts_ms":1}'),
        Message(json.dumps({"before": None, "after": {"id": 1, "name": "a"}, "source": source, "op": "r"}).encode()),
        change(1, "nobody handles posts", table="posts"),
    ]

    async def test():
        async with running(stage, note) as up:
            stage.publish(*no_changes)
            await until(stage.is_done)
            await until(lambda: up.metric("messages_dropped_total", subscription="cdc", reason="heartbeat") == 1)
            reasons = ("tombstone", "transaction", "snapshot_read")
            counted = [up.metric("messages_dropped_total", subscription="cdc", reason=reason) for reason in reasons]
            assert counted == [1, 1, 1]
            assert up.metric("settlements_total", subscription="cdc", verdict="ack") == 5
            assert (up.metric("last_heartbeat_timestamp_seconds", subscription="cdc") or 0) > time.time() - 60

    run(test)


def test_an_async_handler_is_awaited_before_the_acknowledgement(stage):
    seen: list[tuple[int, str]] = []
    gate = threading.Event()

    @handles(User, max_wait=0)
    async def note(batch: Batch[User], ctx: Context) -> None:
        await asyncio.to_thread(gate.wait, 20)
        seen.extend(told(batch))

    async def test():
        stage.publish(change(1, "a"), change(2, "b"))
        async with running(stage, note):
            await until(lambda: stage.counts() == (2, 2))
            assert seen == []
            gate.set()
            await until(stage.is_done)

    run(test)

    assert sorted(seen) == [(1, "a"), (2, "b")]


# ── failures ──


def test_a_failing_change_is_tried_again_with_backoff_and_holds_its_lane_only(stage):
    seen: list[tuple[int, str]] = []
    attempts: list[int] = []

    @handles(User, max_size=1, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        seen.extend(told(batch))
        if names(batch) == ["slow"] and ctx.attempt < 3:
            attempts.append(ctx.attempt)
            raise RuntimeError("not yet")

    def has_tried(times: int) -> bool:
        return seen.count((1, "slow")) == times

    async def test():
        async with running(stage, note, run={"threads": 1}, retry={"first": 100.0, "limit": 200.0}) as up:
            stage.publish(change(1, "slow"), change(1, "behind"), change(2, "other"))
            await until(lambda: (2, "other") in seen)
            # The wait is at least half of what it may be: before that, only others are handled.
            for number, wait in enumerate((49.0, 99.0), 1):
                travel(wait)
                stage.publish(change(3, f"fence {number}"))
                await until(partial(seen.__contains__, (3, f"fence {number}")))
                assert attempts == list(range(1, number + 1))
                travel(wait + 2)
                await until(partial(has_tried, number + 1))
            await until(stage.is_done)
            assert up.metric("retries_total", handler="note") == 2

    run(test)

    assert [each for each in seen if each[0] == 1] == [(1, "slow")] * 3 + [(1, "behind")]
    assert stage.letters() == []


def test_poison_goes_to_the_dead_letters_once_as_it_was_and_says_why(stage):
    @handles(User, max_wait=0, max_attempts=3)
    def note(batch: Batch[User], ctx: Context) -> None:
        if "poison" in names(batch):
            raise RuntimeError("cannot stand this one")

    published = change(1, "poison")

    async def test():
        async with running(stage, note, retry={"first": 0.01, "limit": 0.01}) as up:
            (message_id,) = stage.publish(published)
            await until(stage.letters)
            await until(stage.is_done)
            await until(lambda: up.metric("dead_letters_total", handler="note", table="public.users") == 1)
            (buried,) = stage.letters()
            attributes = dict(buried.attributes)
            varying = {
                name: attributes.pop(f"cdc_{name}")
                for name in ("fingerprint", "first_failure", "last_failure", "error")
            }
            assert attributes == {
                "from": "debezium",
                "cdc_error_class": "RuntimeError",
                "cdc_handler": "note",
                "cdc_table": "public.users",
                "cdc_lsn": "0/7",
                "cdc_attempts": "3",
                "cdc_subscription": "cdc",
                "cdc_message_id": message_id,
            }
            assert varying["error"].startswith("RuntimeError at test_consumer.py:")
            assert varying["error"].endswith(": cannot stand this one")
            assert varying["first_failure"] < varying["last_failure"]
            assert (buried.data, buried.ordering_key) == (published.data, published.ordering_key)

    run(test)

    assert len(stage.letters()) == 1


def test_a_dead_letter_is_acknowledged_only_when_it_is_confirmed(stage):
    @handles(User, max_wait=0, max_attempts=1)
    def note(batch: Batch[User], ctx: Context) -> None:
        if told(batch)[0][0] == 1:
            raise RuntimeError("cannot stand this one")

    async def test():
        async with running(stage, note) as up:
            stage.delete_topic("cdc-dead-letters")
            stage.publish(change(1, "poison"), change(2, "fine"))
            await until(lambda: up.metric("paused", what="cdc-dead-letters", reason="publish") == 1)
            await until(lambda: stage.counts() == (1, 1))
            stage.create_topic("cdc-dead-letters")
            stage.subscribe("letters-again", "cdc-dead-letters")
            travel(1.0)
            await until(stage.is_done)
            assert [json.loads(one.data)["after"]["name"] for one in stage.take("letters-again")] == ["poison"]
            assert up.metric("paused", what="cdc-dead-letters", reason="publish") == 0

    run(test)


def test_skipped_poison_lets_its_row_go_on(stage):
    seen: list[tuple[int, str]] = []

    @handles(User, max_wait=0, max_attempts=2, on_poison="skip")
    def note(batch: Batch[User], ctx: Context) -> None:
        if "poison" in names(batch):
            raise RuntimeError("cannot stand this one")
        seen.extend(told(batch))

    async def test():
        async with running(stage, note, retry={"first": 0.01, "limit": 0.01}):
            stage.publish(*(change(1, name) for name in ("before", "poison", "after", "later")))
            await until(stage.is_done)

    run(test)

    assert seen == [(1, "before"), (1, "after"), (1, "later")]
    assert stage.names_buried() == ["poison"]


def test_parked_poison_takes_all_later_changes_of_its_row_along_in_order(stage):
    seen: list[tuple[int, str]] = []

    @handles(User, max_wait=0, max_attempts=2, on_poison="park")
    def note(batch: Batch[User], ctx: Context) -> None:
        if "poison" in names(batch):
            raise RuntimeError("cannot stand this one")
        seen.extend(told(batch))

    async def test():
        async with running(stage, note, retry={"first": 0.01, "limit": 0.01}):
            stage.publish(*(change(1, name) for name in ("before", "poison", "after", "later")), change(2, "other"))
            await until(stage.is_done)
            stage.publish(change(1, "much later"), change(2, "other again"))
            await until(stage.is_done)

    run(test)

    assert sorted(seen) == [(1, "before"), (2, "other"), (2, "other again")]
    assert stage.names_buried() == ["poison", "after", "later", "much later"]
    assert [dict(letter.attributes).get("cdc_error_class") for letter in stage.letters()] == ["RuntimeError"] + [
        None
    ] * 3
    assert stage.letters()[1].attributes["cdc_error"] == "what came before it in its lane is parked"


def test_a_halted_handler_keeps_its_change_leased_and_gets_it_again_after_a_restart(stage):
    seen: list[tuple[int, str]] = []
    posts: list[tuple[int, str]] = []
    is_mended = False

    @handles(User, max_wait=0, max_attempts=2, on_poison="halt")
    def note(batch: Batch[User], ctx: Context) -> None:
        if not is_mended and "poison" in names(batch):
            raise RuntimeError("cannot stand this one")
        seen.extend(told(batch))

    @handles(Post, max_wait=0)
    def note_posts(batch: Batch[Post], ctx: Context) -> None:
        posts.extend(told(batch))

    async def test():
        nonlocal is_mended
        async with running(stage, note, note_posts, retry={"first": 0.01, "limit": 0.01}) as up:
            stage.publish(change(1, "poison"), change(1, "after"), change(2, "other row"))
            await until(lambda: up.daemon._state().halted == ("note",))
            stage.publish(change(1, "post", table="posts"), change(3, "user"))
            await until(lambda: posts == [(1, "post")])
            await until(lambda: stage.counts() in {(3, 3), (4, 4)}, show=lambda: (stage.statistics("cdc"), seen))
            assert up.why_not_ready() == ["halted at a poisoned change: note; see the log"]
        assert stage.counts()[1] == 0
        is_mended = True
        async with running(stage, note, note_posts) as up:
            await until(stage.is_done)
            assert up.why_not_ready() == []

    run(test)

    assert [each for each in seen if each[0] == 1] == [(1, "poison"), (1, "after")]
    assert stage.letters() == []


def test_a_handler_rejects_what_will_never_succeed_and_asks_for_others_again(stage):
    calls: list[list[str]] = []

    @handles(User, max_size=3, max_wait=100.0)
    def note(batch: Batch[User], ctx: Context) -> None:
        calls.append(names(batch))
        if "never" in calls[-1]:
            raise Reject("no such account", changes=[batch[calls[-1].index("never")]])
        if "later" in calls[-1] and len(calls) < 4:
            raise Retry("the account is locked", changes=[batch[calls[-1].index("later")]], delay=50.0)

    async def test():
        async with running(stage, note):
            stage.publish(change(1, "never"), change(2, "later"), change(3, "now"))
            await until(lambda: stage.counts() == (1, 1))
            travel(49.0)
            stage.publish(*(change(n, "fence") for n in (4, 5, 6)))
            await until(lambda: stage.counts() == (1, 1) and len(calls) == 4)
            travel(2.0)
            await until(lambda: len(calls) == 4)
            travel(100.0)
            await until(stage.is_done)

    run(test)

    assert calls == [["never", "later", "now"], ["later", "now"], ["now"], ["fence"] * 3, ["later"]]
    assert stage.names_buried() == ["never"]
    assert stage.letters()[0].attributes["cdc_error"] == "no such account"
    assert stage.letters()[0].attributes["cdc_attempts"] == "1"


@pytest.mark.parametrize("is_async", [True, False])
def test_a_handler_that_takes_too_long_has_failed(stage, is_async):
    ended = threading.Event()

    @handles(User, max_wait=0, timeout=0.05, max_attempts=2)
    async def note_async(batch: Batch[User], ctx: Context) -> None:
        if names(batch)[0] == "endless":
            await asyncio.Event().wait()

    @handles(User, max_wait=0, timeout=0.05, max_attempts=2)
    def note(batch: Batch[User], ctx: Context) -> None:
        if names(batch)[0] == "endless":
            ended.wait(20)

    async def test():
        async with running(stage, note_async if is_async else note, retry={"first": 0.01, "limit": 0.01}):
            stage.publish(change(1, "endless"), change(1, "after"))
            await until(stage.is_done)
            ended.set()

    run(test)

    assert stage.names_buried() == ["endless"]
    assert stage.letters()[0].attributes["cdc_error_class"] == "HandlerTimeout"


# ── what we need is down ──


def test_an_error_of_the_world_pauses_the_handler_and_spends_no_attempt(stage):
    is_down = True
    attempts: list[int] = []
    seen: list[tuple[int, str]] = []

    @handles(User, max_wait=0, max_attempts=2)
    def note(batch: Batch[User], ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if is_down:
            raise WorldError("the mail server does not answer")
        seen.extend(told(batch))

    def has_tried(times: int) -> bool:
        return len(attempts) >= times

    async def test():
        nonlocal is_down
        async with running(stage, note) as up:
            stage.publish(change(1, "a"), change(1, "b"))
            for count in range(1, 6):
                await until(partial(has_tried, count))
                await until(lambda: up.metric("paused", what="note", reason="world") == 1)
                travel(1.0)
            assert stage.counts()[0] == 2
            is_down = False
            travel(1.0)
            await until(stage.is_done)
            assert up.metric("paused", what="note", reason="world") == 0
            assert up.metric("retries_total", handler="note") == 0

    run(test)

    assert set(attempts) == {1}
    assert seen == [(1, "a"), (1, "b")]
    assert stage.letters() == []


METADATA = MetaData()
NAMES = Table("names", METADATA, Column("n", Integer, primary_key=True), Column("name", String))


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The address of a database of the test's own."""
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS consumer_test WITH (FORCE)")
        server.execute("CREATE DATABASE consumer_test")
        yield postgres_url.rpartition("/")[0] + "/consumer_test"
        server.execute("DROP DATABASE consumer_test WITH (FORCE)")


def set_open(postgres_url: str, *, is_open: bool) -> None:
    """Let nobody into the test's database any more, and end who is in it; or let them in again."""
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(sql.SQL("ALTER DATABASE consumer_test ALLOW_CONNECTIONS {}").format(is_open))
        if not is_open:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'consumer_test'")


def test_a_database_that_goes_away_stops_the_handler_and_loses_nothing(stage, postgres_url, database):
    engine = open_engine(database)
    METADATA.create_all(engine)

    @handles(User, max_wait=0, max_attempts=1)
    def note(batch: Batch[User], ctx: Context) -> None:
        ctx.session.execute(insert(NAMES), [{"name": name} for name in names(batch)])

    async def test():
        async with running(stage, note, engine=engine) as up:
            stage.publish(change(1, "a"))
            await until(stage.is_done)
            set_open(postgres_url, is_open=False)
            stage.publish(change(1, "b"), change(1, "c"))
            await until(lambda: up.metric("paused", what="note", reason="world") == 1)
            travel(5.0)
            await until(up.why_not_ready)
            assert stage.counts() == (2, 2)
            set_open(postgres_url, is_open=True)
            travel(5.0)
            await until(stage.is_done)
            travel(5.0)
            await until(lambda: not up.why_not_ready())

    run(test)

    with engine.connect() as connection:
        assert connection.scalars(select(NAMES.c.name).order_by(NAMES.c.n)).all() == ["a", "b", "c"]
    engine.dispose()
    assert stage.letters() == []


def test_an_event_is_published_after_the_commit_and_before_the_acknowledgement(stage, tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'names.db'}")
    METADATA.create_all(engine)

    @handles(User, max_wait=0)
    def announce(batch: Batch[User], ctx: Context) -> None:
        ctx.session.execute(insert(NAMES), [{"name": name} for name in names(batch)])
        for user_id, name in told(batch):
            ctx.publish(Named(user_id=user_id, name=name), key=str(user_id))

    def committed() -> list[str | None]:
        with engine.connect() as connection:
            return list(connection.scalars(select(NAMES.c.name).order_by(NAMES.c.n)))

    async def test():
        async with running(stage, announce, engine=engine) as up:
            stage.publish(*(change(row, str(n)) for n in range(5) for row in (1, 2)))
            await until(lambda: up.metric("paused", what="user.named.v1", reason="publish") == 1)
            assert committed()
            assert stage.counts() == (10, 10)
            stage.create_topic("user.named.v1")
            stage.subscribe("names", "user.named.v1")
            travel(1.0)
            await until(stage.is_done)

    run(test)

    events = [(one.ordering_key, json.loads(one.data)) for one in stage.take("names")]
    for key in ("1", "2"):
        assert [event["name"] for of, event in events if of == key] == [str(n) for n in range(5)]
    assert len(events) == len(committed()) == 10
    engine.dispose()


class Registry:
    """A schema registry on a port of its own, which answers from when it is opened."""

    def __init__(self) -> None:
        schemas = json.loads((CAPTURES / "forum_avro.registry.json").read_bytes())["schemas_by_id"]
        answers = {
            f"/schemas/ids/{number}": json.dumps({"schema": json.dumps(schema)}).encode()
            for number, schema in schemas.items()
        }

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers[self.path.partition("?")[0]]
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering, bind_and_activate=False)
        self._server.server_bind()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def open(self) -> None:
        self.hang()
        self._thread.start()

    def hang(self) -> None:
        """Take connections and answer none."""
        self._server.server_activate()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


class Member(Row, table="public.users"):
    id: int


def captured_in_avro() -> list[Message]:
    lines = [json.loads(line) for line in (CAPTURES / "forum_avro.records.ndjson").read_bytes().splitlines()]
    return [
        Message(base64.b64decode(line["value"]), ordering_key=line["key"])
        for line in lines
        if line["destination"] == "forum.public.users" and line["value"]
    ]


def test_nothing_overtakes_while_the_schema_registry_is_down(stage, registry):
    seen: list[tuple[str, int]] = []

    @handles(Member, max_wait=0)
    def note(batch: Batch[Member], ctx: Context) -> None:
        seen.extend((type(each).__name__, each.key["id"]) for each in batch)

    captured = captured_in_avro()
    needs_no_schema = Message(change(1).data, ordering_key=captured[-1].ordering_key)

    async def test():
        async with running(stage, note, schemas=open_schemas(registry.url)) as up:
            stage.publish(*captured, needs_no_schema)
            await until(lambda: up.metric("paused", what="cdc", reason="schemas") == 1)
            assert seen == []
            registry.open()
            travel(1.0)
            await until(stage.is_done)
            assert up.metric("paused", what="cdc", reason="schemas") == 0

    run(test)

    assert seen[-1] == ("Create", 1)
    assert Counter(kind for kind, _ in seen) == {"Create": 3, "Update": 3, "Delete": 2}
    assert stage.letters() == []


def test_a_schema_registry_that_hangs_keeps_nothing_else_from_going_on(stage, registry):
    seen: list[tuple[int, str]] = []
    stage.create_topic("plain")
    stage.subscribe("plain", "plain")

    @handles(User, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        seen.extend(told(batch))

    async def test():
        registry.hang()
        both = ["cdc", "plain"]
        async with running(stage, note, subscriptions=both, schemas=open_schemas(registry.url)) as up:
            captured = captured_in_avro()
            stage.publish(*captured)
            await until(lambda: stage.counts() == (len(captured), len(captured)))
            stage.publish(change(1, "plain"), topic="plain")
            await until(lambda: seen == [(1, "plain")], within=5)
            up.daemon.stop()
            await until(up.task.done, within=5)
        assert stage.counts() == (len(captured), 0)

    run(test)


@pytest.mark.parametrize("lacks", ["user.named.v1", "cdc-dead-letters"])
def test_what_cannot_be_published_before_the_end_goes_back(stage, lacks):
    stage.create_topic("user.named.v1")

    @handles(User, max_wait=0, max_attempts=1)
    def announce(batch: Batch[User], ctx: Context) -> None:
        for user_id, name in told(batch):
            ctx.publish(Named(user_id=user_id, name=name), key=str(user_id))
        if lacks == "cdc-dead-letters":
            raise RuntimeError("cannot stand this one")

    async def test():
        async with running(stage, announce) as up:
            stage.delete_topic(lacks)
            stage.publish(*(change(1, str(n)) for n in range(3)))
            await until(lambda: up.metric("paused", what=lacks, reason="publish") == 1)
            await until(lambda: stage.counts() == (3, 3))
        assert stage.counts() == (3, 0)
        assert [json.loads(message.data)["after"]["name"] for message in stage.take("cdc")] == ["0", "1", "2"]

    run(test)


# ── what nobody can use ──


def test_a_change_of_an_unknown_table_goes_to_the_dead_letters_where_that_is_wanted(stage):
    seen: list[tuple[int, str]] = []

    @handles(User, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        seen.extend(told(batch))

    async def test():
        async with running(stage, note, unknown_table="dead-letter"):
            stage.publish(change(1, "post", table="posts"), change(1, "user"))
            await until(stage.is_done)

    run(test)

    assert seen == [(1, "user")]
    assert stage.names_buried() == ["post"]
    assert stage.letters()[0].attributes["cdc_table"] == "public.posts"


def test_a_change_of_an_unknown_table_stops_the_daemon_where_that_is_wanted(stage):
    @handles(User, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None: ...

    async def test():
        stage.publish(change(1, "post", table="posts"))
        with pytest.raises(Stopped, match=r"^public\.posts has no handler, and unknown_table is stop$"):
            await running_to_its_end(stage, note, unknown_table="stop")
        assert stage.counts() == (1, 0)

    run(test)


def test_a_flood_of_bytes_that_mean_nothing_lets_the_intake_rest(stage):
    seen: list[tuple[int, str]] = []

    @handles(User, max_wait=0)
    def note(batch: Batch[User], ctx: Context) -> None:
        seen.extend(told(batch))

    async def test():
        async with running(stage, note, breaker={"consecutive": 5, "pause": 200.0}) as up:
            garbage = [Message(b"\xff\x00 no JSON %d" % n, {"n": str(n)}) for n in range(5)]
            stage.publish(*garbage)
            await until(lambda: len(stage.letters()) == 5)
            assert sorted(letter.data for letter in stage.letters()) == [m.data for m in garbage]
            assert {letter.attributes["cdc_error_class"] for letter in stage.letters()} == {"DecodeError"}
            assert up.metric("breaker_open", handler="cdc") == 1
            await until(lambda: up.metric("messages_undecodable_total", subscription="cdc") == 5)
            stage.publish(change(1, "waits"))
            travel(150.0)
            await until(lambda: up.metric("breaker_open", handler="cdc") == 1)
            assert seen == []
            travel(51.0)
            await until(lambda: seen == [(1, "waits")])
            await until(stage.is_done)
            assert up.metric("breaker_open", handler="cdc") == 0

    run(test)


def test_a_handler_that_gives_up_too_much_rests_and_others_go_on(stage):
    is_mended = False
    seen: list[tuple[int, str]] = []
    posts: list[tuple[int, str]] = []

    @handles(User, max_size=1, max_wait=0, max_attempts=1)
    def note(batch: Batch[User], ctx: Context) -> None:
        if not is_mended:
            raise RuntimeError("written for another schema")
        seen.extend(told(batch))

    @handles(Post, max_wait=0)
    def note_posts(batch: Batch[Post], ctx: Context) -> None:
        posts.extend(told(batch))

    async def test():
        nonlocal is_mended
        async with running(
            stage, note, note_posts, breaker={"consecutive": 3, "pause": 200.0}, run={"threads": 1}
        ) as up:
            stage.publish(*(change(row, "lost") for row in range(3)))
            await until(lambda: up.metric("breaker_open", handler="note") == 1)
            await until(stage.is_done)
            stage.publish(change(7, "kept"), change(8, "kept"), change(1, "post", table="posts"))
            await until(lambda: posts == [(1, "post")])
            await until(lambda: stage.counts() == (2, 2))
            is_mended = True
            travel(200.0)
            await until(stage.is_done)
            await until(lambda: up.metric("breaker_open", handler="note") == 0)

    run(test)

    assert sorted(seen) == [(7, "kept"), (8, "kept")]
    assert stage.names_buried() == ["lost"] * 3


# ── what is logged ──


def test_no_value_of_a_row_is_logged(stage, tmp_path, caplog, capfd):
    marker = "ada@forum.example"
    engine = open_engine(f"sqlite:///{tmp_path / 'names.db'}")
    strict = MetaData()
    unique = Table("strict", strict, Column("name", String, primary_key=True))
    strict.create_all(engine)
    caplog.set_level(logging.DEBUG)

    @handles(User, max_size=1, max_wait=0, max_attempts=2)
    def note(batch: Batch[User], ctx: Context) -> None:
        user_id, name = told(batch)[0]
        match user_id:
            case 1:
                raise KeyError(name)
            case 2:
                int(name)
            case 3:
                ctx.session.execute(insert(unique), [{"name": name}, {"name": name}])
            case 4:
                User(id=1, name=[name])

    async def test():
        async with running(stage, note, engine=engine, retry={"first": 0.01, "limit": 0.01}):
            broken = change(6, marker)
            stage.publish(
                *(change(row, marker) for row in range(1, 6)),
                change(7, marker, id=marker),
                Message(broken.data[:-1], ordering_key=broken.ordering_key),
                Message(marker.encode() * 3),
            )
            await until(stage.is_done)

    run(test)

    engine.dispose()
    assert len(stage.letters()) == 7
    written = [record.getMessage() + str(record.exc_text) + str(record.exc_info) for record in caplog.records]
    assert len([line for line in written if "goes to the dead letters" in line]) == 7
    assert [line for line in written if marker in line] == []
    assert not any(marker in dict(letter.attributes).get("cdc_error", "") for letter in stage.letters())
    assert marker not in "".join(capfd.readouterr())
