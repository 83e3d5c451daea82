"""The Harness and the fixtures that teams test with: real messages, a real database, a clock that jumps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from pydantic import Field, Json
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import cdc_reactor as cdc
from cdc_reactor import Batch, Context, Create, Delete, Event, Handler, Reject, Retry, Row, Truncate, Update, handles
from cdc_reactor.discovery import discover
from cdc_reactor.errors import DefinitionError, WorldError
from cdc_reactor.messages import Verdict
from cdc_reactor.testing import Harness, Run, assert_registered, fresh_database

CAPTURES = Path(__file__).parent / "captures"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

# Found by its name, as in a team's module.
metadata = MetaData()
seen_users = Table("seen_users", metadata, Column("n", Integer, primary_key=True), Column("name", Text))


class User(Row, table="public.user"):
    id: UUID
    username: str | None
    reputation: int = 0


class UserRenamed(Event, topic="user.renamed.v1"):
    user_id: UUID
    old: str | None
    new: str | None


class UserDeleted(Event, topic="user.deleted.v1"):
    user_id: UUID


@handles(User, max_size=100, max_wait=0.5)
def announce(batch: Batch[User], ctx: Context) -> None:
    for change in batch:
        match change:
            case Update(before=User() as old, after=new) if change.is_changed("username"):
                ctx.publish(UserRenamed(user_id=new.id, old=old.username, new=new.username), key=str(new.id))
            case Delete(before=gone):
                ctx.publish(UserDeleted(user_id=gone.id), key=str(gone.id))


@handles(User)
def keep(batch: Batch[User], ctx: Context) -> None:
    for change in batch:
        if change.after is not None:
            ctx.session.execute(insert(seen_users).values(name=change.after.username))


class Post(Row, table="public.posts", key=("blog", "number")):
    blog: str
    number: int
    title: str = ""


def spy(row: type[Row], **options: Any) -> tuple[Handler[Any], list[Any]]:
    """Make a handler that writes down the changes it sees."""
    seen: list[Any] = []

    @handles(row, **options)
    def see(batch: Batch[Any], ctx: Context) -> None:
        seen.extend(batch)

    return see, seen


def names(run: Run) -> list[str | None]:
    with run.session as session:
        return list(session.scalars(select(seen_users.c.name).order_by(seen_users.c.n)))


def body(run: Run, n: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run.settlements[n].delivery.message.data)
    return told


class TestTheExample:
    def test_announces_a_new_name_and_a_departure(self):
        ada = {"id": uuid4(), "username": "ada"}

        run = Harness(announce).update(ada, username="countess").update(ada, reputation=7).delete(**ada).run()

        assert run.events == [
            UserRenamed(user_id=ada["id"], old="ada", new="countess"),
            UserDeleted(user_id=ada["id"]),
        ]
        assert [publication.key for publication in run.publications] == [str(ada["id"])] * 2
        assert (run.acked, run.nacked, run.dead_letters, run.runs) == (3, 0, [], 1)


class TestChanges:
    @pytest.mark.parametrize("schemas", [False, True])
    def test_arrive_as_they_were_made(self, schemas):
        see, seen = spy(User, snapshot=True)
        ada = User(id=uuid4(), username="ada")

        harness = Harness(see, schemas=schemas).insert(ada).create(id=ada.id, username=None).snapshot(ada)
        harness.update(ada, reputation=1).delete(ada).truncate().run().expect_acked()

        changed = ada.model_copy(update={"reputation": 1})
        assert [(type(c), c.before, c.after) for c in seen] == [
            (Create, None, ada),
            (Create, None, ada.model_copy(update={"username": None})),
            (Create, None, ada),
            (Update, ada, changed),
            (Delete, ada, None),
            (Truncate, None, None),
        ]
        assert [c.is_snapshot for c in seen if isinstance(c, Create)] == [False, False, True]
        assert [c.lsn for c in seen] == sorted(c.lsn for c in seen)

    def test_of_the_key_are_a_delete_and_an_insert(self):
        see, seen = spy(Post)
        before = {"blog": "a", "number": 1}

        run = Harness(see).update(before, number=2).run()

        assert [(type(c), c.key) for c in seen] == [(Delete, {**before}), (Create, {**before, "number": 2})]
        assert [s.delivery.message.ordering_key for s in run.settlements] == [
            '{"blog":"a","number":1}',
            '{"blog":"a","number":2}',
        ]

    def test_of_a_table_that_sends_keys_only_are_what_debezium_sends(self):
        @handles(User)
        def look(batch: Batch[User], ctx: Context) -> None: ...

        ada = {"id": UUID(int=1), "username": "ada", "reputation": 5}
        run = Harness(look, replica_identity="default").update(ada, reputation=6).delete(**ada).run().expect_acked()

        assert (body(run, 0)["before"], body(run, 0)["after"]["reputation"]) == (None, 6)
        assert body(run, 1)["before"] == {"id": str(UUID(int=1)), "username": None, "reputation": None}

    def test_of_a_row_that_says_so_carry_their_key_only(self):
        class Vote(Row, table="public.votes", key=("post",), identity="default"):
            post: int
            value: int

        see, seen = spy(Vote)
        run = Harness(see).delete(post=3, value=1).run().expect_acked()

        assert body(run)["before"] == {"post": 3, "value": 0}
        with pytest.raises(cdc.ImageUnavailable, match="column value was not sent"):
            _ = seen[0].before.value

    def test_may_be_any_bytes(self):
        run = Harness(announce).raw(b"{oops").raw(b'{"ts_ms":1}').raw(b"").run()

        assert [(s.verdict, s.reason[:14]) for s in run.settlements] == [
            (Verdict.DEAD_LETTER, "not JSON: JSON"),
            (Verdict.ACK, "heartbeat"),
            (Verdict.ACK, "tombstone"),
        ]

    def test_of_several_tables_need_the_table(self):
        see, seen = spy(Post)
        harness = Harness(announce, see)

        harness.on(Post).insert(blog="a", number=1).on(User).insert(id=uuid4(), username="ada")
        harness.insert(Post, blog="a", number=2).update(Post(blog="a", number=2), title="new")
        harness.update(Post, {"blog": "a", "number": 2}, title="newer")
        run = harness.run().expect_acked()

        assert [c.key["number"] for c in seen] == [1, 2, 2, 2]
        assert run.acked == 5

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda h: h.insert(usernme="ada"), "User has no column 'usernme'; did you mean 'username'?"),
            (lambda h: h.update({"id": uuid4()}, zip=1), "User has no column 'zip'; it has id, username, reputation"),
            (lambda h: h.delete(username="ada"), "User.id has no default and cannot be null: give it"),
            (lambda h: h.insert(Post, blog="a"), "no handler here wants Post; there are User"),
            (lambda h: h.on(Post), "no handler here wants Post; there are User"),
            (lambda h: h.insert(id=object(), username=""), "User.id: no column holds <object object at"),
        ],
    )
    def test_that_make_no_sense_are_told_at_once(self, make, message):
        with pytest.raises(TypeError) as told:
            make(Harness(announce))

        assert str(told.value).startswith(message)

    def test_without_a_table_are_told(self):
        with pytest.raises(TypeError, match=r"handlers of User and Post: say which, by \.on\(Row\)"):
            Harness(announce, spy(Post)[0]).insert(blog="a", number=1)

    def test_that_do_not_fit_the_row_become_dead_letters_with_the_reason(self):
        run = Harness(keep).insert(id="no uuid", username="eve").insert(id=uuid4(), username="ada").run()

        (letter,) = run.dead_letters
        assert letter.reason.startswith("public.user does not fit User: id: Input should be a valid UUID")
        assert names(run) == ["ada"]


class Colour(Enum):
    RED = "red"


EPOCH = datetime.fromisoformat("1970-01-01T00:00:00")
PARIS = timezone(timedelta(hours=1))
# Annotation, value in the test, what stands on the wire, and what the handler sees if not the value.
VALUES: list[tuple[Any, Any, Any]] = [
    (int, 2**40, 2**40),
    (bool, True, True),
    (float, 1.5, 1.5),
    (float, float("inf"), "Infinity"),
    (str, "ünï", "ünï"),
    (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Colour, Colour.RED, "red"),
    (date, date(2026, 11, 23), 20780),
    (datetime, NOON, "2026-11-23T12:00:00Z"),
    (datetime, datetime(2026, 11, 23, 13, 0, 0, 5, tzinfo=PARIS), "2026-11-23T12:00:00.000005Z"),
    (cdc.MilliTimestamp, EPOCH + timedelta(seconds=1), 1000),
    (cdc.MicroTimestamp, EPOCH + timedelta(seconds=1, microseconds=5), 1000005),
    (cdc.MicroTimestamp | cdc.Infinity, cdc.Infinity.POSITIVE, 9_223_372_036_825_200_000),
    (cdc.MicroTimestamp | cdc.Infinity, cdc.Infinity.NEGATIVE, -9_223_372_036_832_400_000),
    (cdc.EpochDays | cdc.Infinity, cdc.Infinity.NEGATIVE, -2_147_472_691),
    (datetime | cdc.Infinity, cdc.Infinity.POSITIVE, "infinity"),
    (cdc.NanoTimestamp, EPOCH + timedelta(seconds=1, microseconds=5), 1000005000),
    (cdc.IsoTimestamp, EPOCH, "1970-01-01T00:00:00Z"),
    (cdc.EpochDays, date(1970, 1, 2), 1),
    (cdc.IsoDate, date(2026, 11, 23), "2026-11-23Z"),
    (cdc.MilliTime, time(0, 0, 1), 1000),
    (cdc.MicroTime, time(0, 0, 1, 5), 1000005),
    (cdc.NanoTime, time(0, 0, 1, 5), 1000005000),
    (cdc.IsoTime, time(12, 30), "12:30:00Z"),
    (time, time(12, 30, tzinfo=UTC), "12:30:00+00:00"),
    (cdc.MicroDuration, timedelta(seconds=-1), -1_000_000),
    (timedelta, timedelta(days=1, microseconds=5), "P0Y0M0DT0H0M86400.000005S"),
    (timedelta, timedelta(seconds=-1.5), "P0Y0M0DT0H0M-1.500000S"),
    (cdc.Interval, cdc.Interval(14, 3, -5), "P0Y14M3DT0H0M-0.000005S"),
    (cdc.Base64Bytes, b"\xff\xfe", "//4="),
    (cdc.Base64UrlBytes, b"\xff\xfe", "__4="),
    (cdc.HexBytes, b"\xff\xfe", "fffe"),
    (cdc.DecimalString, Decimal("1E+3"), "1000"),
    (cdc.VariableDecimal, Decimal("-1.25"), {"scale": 2, "value": "gw=="}),
    (cdc.DecimalBytes(2), Decimal("3.50"), "AV4="),
    (Annotated[Decimal, cdc.DecimalBytes(2)], Decimal("0.01"), "AQ=="),
    (Annotated[Decimal, cdc.DecimalBytes(0)], Decimal(10) ** 40, None),
    (Decimal, Decimal("1.5"), 1.5),
    (Decimal, Decimal(3), 3),
    (Json[dict[str, int]], {"n": 1}, '{"n":1}'),
    (Json, [1, 2], "[1,2]"),
    (list[str], ["a", "b"], ["a", "b"]),
    (list[int | None], [1, None], [1, None]),
    (list[cdc.EpochDays], [date(1970, 1, 2)], [1]),
    (list[str], [], []),
]


class TestColumns:
    @pytest.mark.parametrize("schemas", [False, True], ids=["schemas off", "schemas on"])
    @pytest.mark.parametrize(
        ("annotation", "value", "wire"),
        VALUES,
        ids=[f"{getattr(a, '__name__', a)}-{n}" for n, (a, _, _) in enumerate(VALUES)],
    )
    def test_come_back_as_they_were_given(self, annotation, value, wire, schemas):
        class Thing(Row, table="public.things"):
            id: int
            value: annotation | None = None  # type: ignore[valid-type]  # made at run time

        see, seen = spy(Thing)

        run = Harness(see, schemas=schemas).insert(id=1, value=value).insert(id=2).run().expect_acked()

        assert [change.after.value for change in seen] == [value, None]
        payload = body(run)["payload"] if schemas else body(run)
        if wire is not None and not (schemas and annotation is timedelta):
            assert payload["after"]["value"] == wire

    def test_without_zone_or_unit_are_refused_as_in_production(self):
        class Thing(Row, table="public.things"):
            id: int
            at: datetime

        see, seen = spy(Thing)
        naive = datetime.fromisoformat("2026-11-23T12:00:00")

        @handles(Thing)
        def look(batch: Batch[Thing], ctx: Context) -> None:
            assert isinstance(batch[0].after, Thing)

        (letter,) = Harness(look).insert(id=1, at=naive).run().dead_letters
        assert "annotate MilliTimestamp, MicroTimestamp or NanoTimestamp" in letter.reason
        Harness(see, schemas=True).insert(id=1, at=naive).run().expect_acked()
        assert seen[0].after.at == naive

    def test_go_by_their_alias_on_the_wire_and_by_either_name_here(self):
        class Thing(Row, table="public.things"):
            id: int
            kind: str = Field(alias="type")

        see, _ = spy(Thing)

        run = Harness(see).insert(id=1, kind="a").insert(id=2, type="b").run()

        assert [body(run, n)["after"]["type"] for n in (0, 1)] == ["a", "b"]

    def test_that_are_empty_where_only_the_key_is_sent_are_seen_as_not_sent(self):
        class Thing(Row, table="public.things"):
            id: int
            name: str
            at: datetime
            size: cdc.EpochDays
            price: Annotated[Decimal, cdc.DecimalBytes(2)]
            tags: list[str]

        thing = {"name": "a", "at": NOON, "size": date(2026, 1, 1), "price": Decimal(1), "tags": ["a"]}
        for schemas in (False, True):
            see, seen = spy(Thing)
            Harness(see, schemas=schemas, replica_identity="default").delete(id=7, **thing).run().expect_acked()
            assert seen[0].before.id == 7
            for name in thing:
                with pytest.raises(cdc.ImageUnavailable):
                    getattr(seen[0].before, name)


class TestARun:
    def test_retries_at_once_on_a_clock_that_jumps(self):
        times = []

        @handles(User, max_wait=2.0)
        def patient(batch: Batch[User], ctx: Context) -> None:
            times.append((ctx.now - NOON).total_seconds())
            if ctx.attempt < 4:
                raise Retry("busy", delay=3600)
            ctx.publish(UserDeleted(user_id=batch[0].key["id"]))

        harness = Harness(patient, now=NOON)

        assert len(harness.insert(id=uuid4(), username="ada").run().expect_acked().events) == 1
        assert times == [2.0, 3602.0, 7202.0, 10802.0]

    def test_tells_dead_letters_with_their_error(self, caplog):
        error = RuntimeError("cannot")

        @handles(User, max_attempts=3)
        def poisoned(batch: Batch[User], ctx: Context) -> None:
            if any(c.after is not None and c.after.username == "eve" for c in batch):
                raise error

        run = Harness(poisoned).insert(id=uuid4(), username="ada").insert(id=uuid4(), username="eve").run()

        (letter,) = run.dead_letters
        reason = letter.reason
        assert re.fullmatch(r"RuntimeError at test_testing\.py:\d+: cannot", reason)
        assert (letter.handler, letter.error, letter.attempts) == ("poisoned", error, 3)
        assert (run.acked, run.nacked) == (1, 0)
        assert repr(run) == (
            f"<Run: 1 acked, 0 nacked, 1 dead letters, 0 events, 5 runs\n  dead letter of poisoned: {reason}>"
        )
        with pytest.raises(
            AssertionError, match="1 of 2 messages failed:\n  DEAD_LETTER poisoned: RuntimeError"
        ) as told:
            run.expect_acked()
        assert told.value.__cause__ is error
        assert [record.getMessage() for record in caplog.records] == [f"dead letter of poisoned: {reason}"]

    def test_of_a_handler_that_halts_gives_the_rest_back(self):
        @handles(User, on_poison="halt", max_size=1)
        def strict(batch: Batch[User], ctx: Context) -> None:
            raise Reject("never")

        run = Harness(strict).insert(id=uuid4(), username="ada").insert(id=uuid4(), username="bob").run()

        assert (run.acked, run.nacked, list(run.halted)) == (0, 2, ["strict"])

    def test_gives_up_on_a_world_that_is_down(self):
        @handles(User)
        def unlucky(batch: Batch[User], ctx: Context) -> None:
            raise WorldError("the CRM is down")

        with pytest.raises(WorldError, match="the CRM is down"):
            Harness(unlucky).insert(id=uuid4(), username="ada").run()

    def test_can_be_followed_by_another_on_the_same_database(self):
        harness = Harness(keep).insert(id=uuid4(), username="ada")

        assert names(harness.run()) == ["ada"]
        assert names(harness.insert(id=uuid4(), username="bob").run()) == ["ada", "bob"]
        assert names(harness.redeliver().run()) == ["ada", "bob", "ada", "bob"]

    def test_begins_with_what_was_saved_before(self):
        harness = Harness(keep)
        with harness.session as session:
            session.execute(insert(seen_users).values(name="eve"))
            session.commit()

        assert names(harness.insert(id=uuid4(), username="ada").run()) == ["eve", "ada"]

    def test_outlives_its_harness(self):
        run = Harness(keep).insert(id=uuid4(), username="ada").run()

        assert run.session.scalars(select(seen_users.c.name)).all() == ["ada"]
        assert sorted(inspect(run.engine).get_table_names()) == ["accounts", "seen_users"]

    def test_rolls_back_what_failed(self):
        @handles(User, max_attempts=2)
        def half(batch: Batch[User], ctx: Context) -> None:
            ctx.session.execute(insert(seen_users).values(name="half"))
            raise RuntimeError

        assert names(Harness(half).insert(id=uuid4(), username="ada").run()) == []

    @pytest.mark.parametrize("wrong", [(), (print,), ("announce",)])
    def test_needs_handlers(self, wrong):
        with pytest.raises(TypeError, match=r"Harness takes the handlers|is no handler: decorate it with @handles"):
            Harness(*wrong)

    def test_needs_one_row_for_each_table(self):
        class Other(Row, table="public.user"):
            id: UUID

        with pytest.raises(DefinitionError, match=r"public\.user has two Row models"):
            Harness(announce, spy(Other)[0])

    def test_creates_the_tables_that_it_is_given_and_those_that_the_module_uses(self):
        given = MetaData()
        Table("given", given, Column("id", Integer, primary_key=True))

        harness = Harness(keep, metadata=given)

        assert sorted(inspect(harness.engine).get_table_names()) == ["accounts", "given", "seen_users"]


class TestCapturedFiles:
    def test_are_replayed_with_the_schemas_that_lie_beside_them(self):
        handlers = discover(["table_handlers"], entry_points=False).handlers

        run = Harness(*handlers).replay_file(CAPTURES / "forum_avro.records.ndjson").run().expect_acked()

        assert len(run.settlements) == 95
        assert {"post.published.v1", "user.deleted.v1"} <= {event.topic for event in run.events}

    def test_of_damaged_lines_leave_dead_letters(self, tmp_path):
        file = tmp_path / "a.ndjson"
        file.write_bytes(b'{"ts_ms":1}\n{"before": oops}\n')

        run = Harness(announce).replay_file(file).run()

        assert sorted(s.verdict for s in run.settlements) == [Verdict.ACK, Verdict.DEAD_LETTER]

    def test_of_what_is_no_captured_message_leave_dead_letters(self, tmp_path, caplog):
        file = tmp_path / "a.ndjson"
        file.write_bytes(b'{"value":{"ts_ms":1}}\n{"data":7}\n')

        run = Harness(announce).replay_file(file, format="records").run()

        assert sorted(s.verdict for s in run.settlements) == [Verdict.ACK, Verdict.DEAD_LETTER]
        assert [record.getMessage() for record in caplog.records] == [
            f"dead letter of no handler: {run.dead_letters[0].reason}"
        ]

    @pytest.mark.parametrize("name", ["values.ndjson", "records.ndjson"])
    def test_may_be_told_their_format(self, name):
        handlers = discover(["table_handlers"], entry_points=False).handlers

        harness = Harness(*handlers).replay_file(CAPTURES / f"forum_schemas_off.{name}", format=name.split(".")[0])

        events = harness.run().expect_acked().events
        assert {"post.published.v1", "user.deleted.v1"} <= {event.topic for event in events}


class TestRegistration:
    def test_is_seen(self):
        from table_handlers.users import announce as shipped

        assert_registered(shipped)

    def test_of_a_handler_from_elsewhere_fails(self):
        with pytest.raises(AssertionError, match=r"announce \(.*\) is not found in table_handlers: it must stand at"):
            assert_registered(announce)

    def test_fails_where_the_package_cannot_be_imported(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "broken_for_testing").mkdir()
        (tmp_path / "broken_for_testing" / "users.py").write_text("1/0")

        with pytest.raises(AssertionError, match=r"cannot be imported whole:\n  .*users\.py:1: ZeroDivisionError"):
            assert_registered(announce, package="broken_for_testing")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class TestThePlugin:
    def test_gives_a_harness_on_the_database_of_the_test(self, harness, database):
        run = harness(keep, now=NOON).insert(id=uuid4(), username="ada").run()

        assert run.engine is database
        assert names(run) == ["ada"]

    def test_gives_each_test_a_clean_database(self, database):
        assert inspect(database).get_table_names() == []

    def test_saves_rows_to_begin_with(self, harness, save_fixtures):
        save_fixtures(seen_users, [{"name": "eve"}, {"name": "bob"}])

        assert names(harness(keep).insert(id=uuid4(), username="ada").run()) == ["eve", "bob", "ada"]

    def test_saves_objects_to_begin_with(self, database, save_fixtures):
        account = Account(id=1, name="ada")

        save_fixtures(account, Account(id=2, name="bob"))

        assert account.name == "ada"
        with Session(database) as session:
            assert session.scalars(select(Account.name).order_by(Account.id)).all() == ["ada", "bob"]

    def test_replays_files(self, replay_file):
        from table_handlers.posts import announce_publication

        run = replay_file(CAPTURES / "forum_schemas_on.values.ndjson", announce_publication)

        assert [event.topic for event in run.events] == ["post.published.v1"]


def test_a_database_for_tests_is_postgresql_or_in_memory(tmp_path):
    with (
        pytest.raises(TypeError, match="is PostgreSQL's, or SQLite in memory"),
        fresh_database(f"sqlite:///{tmp_path}/a"),
    ):
        pass


@pytest.mark.postgres
class TestOnPostgres:
    def test_a_harness_connects_to_a_given_database(self, postgres_url):
        with fresh_database(postgres_url) as engine:
            url = engine.url.render_as_string(hide_password=False)

            assert names(Harness(keep, database_url=url).insert(id=uuid4(), username="ada").run()) == ["ada"]
            with engine.connect() as connection:
                assert connection.execute(select(seen_users.c.name)).all() == [("ada",)]

    def test_each_test_has_a_schema_of_its_own_which_goes_with_it(self, postgres_url):
        with fresh_database(postgres_url) as one, fresh_database(postgres_url) as other:
            metadata.create_all(one)
            assert inspect(other).get_table_names() == []
            assert inspect(one).get_table_names() == ["seen_users"]
        with fresh_database(postgres_url) as later:
            assert not [name for name in inspect(later).get_schema_names() if "cdc_test" in name][1:]

    def test_the_shipped_handlers_work_there(self, postgres_url):
        handlers = discover(["table_handlers"], entry_points=False).handlers
        with fresh_database(postgres_url) as engine:
            harness = Harness(*handlers, engine=engine).replay_file(CAPTURES / "forum_schemas_off.values.ndjson")
            first = state(harness.run().expect_acked())
            again = state(harness.redeliver().run().expect_acked())

        in_memory = Harness(*handlers).replay_file(CAPTURES / "forum_schemas_off.values.ndjson").run()
        assert first == again == state(in_memory)

    @pytest.mark.parametrize("way", ["option", "variable"])
    def test_the_plugin_is_told_where_it_is(self, postgres_url, tmp_path, way):
        (tmp_path / "test_it.py").write_text(
            "def test_it(database):\n    assert database.dialect.name == 'postgresql'\n"
        )
        option = [f"--cdc-database-url={postgres_url}"] if way == "option" else []
        env = {**os.environ, **({"CDC_REACTOR_TEST_DATABASE_URL": postgres_url} if way == "variable" else {})}

        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", *option],
            cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert "1 passed" in done.stdout, done.stdout


def state(run: Run) -> Mapping[str, Any]:
    from table_handlers import metadata as derived

    with run.session as session:
        return {table.name: sorted(map(tuple, session.execute(select(table)))) for table in derived.sorted_tables}
