"""Why a captured message goes where it goes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from cdc_reactor import Batch, Context, Create, Delete, EpochDays, MicroTimestamp, Row, handles
from cdc_reactor.captures import find_captures
from cdc_reactor.changes import Update
from cdc_reactor.errors import UsageError
from cdc_reactor.explain import Answer, Cell, Explainer, Explanation, Image, describe, parse_target, pick, render
from cdc_reactor.messages import Message
from cdc_reactor.schemas import open_schemas

CAPTURES = Path(__file__).parent / "captures"


class User(Row, table="public.users"):
    id: int
    handle: str


class Post(Row, table="public.posts"):
    id: int
    body: str | None
    published_on: EpochDays | None = Field(alias="published")


class Comment(Row, table="public.comments"):
    id: int
    text: str | None


class Vote(Row, table="public.votes", key=("post", "voter")):
    post: int
    voter: int
    value: MicroTimestamp  # which it is not


class Visit(Row, table="public.visits"):
    page: str | None


@handles(User, ops=(Create, Delete), owner="team-a", timeout=5)
def greet(batch: Batch[User], ctx: Context) -> None:
    pass


@handles(User, snapshot=True)
def load(batch: Batch[User], ctx: Context) -> None:
    pass


@handles(Post, ops=[Update], when_changed=["body"])
def index(batch: Batch[Post], ctx: Context) -> None:
    pass


@handles(Comment, when_changed=["text"])
def moderate(batch: Batch[Comment], ctx: Context) -> None:
    pass


@handles(Comment, when_changed=["id"])
def move(batch: Batch[Comment], ctx: Context) -> None:
    pass


@handles(Vote)
def count(batch: Batch[Vote], ctx: Context) -> None:
    pass


@handles(Visit)
async def visit(batch: Batch[Visit], ctx: Context) -> None:
    pass


HANDLERS = (greet, load, index, moderate, move, count, visit)


def explain(capture: str, number: int, handlers: Sequence[Any] = HANDLERS, *, show_values: bool = True) -> Explanation:
    schemas = open_schemas(str(CAPTURES / "forum_avro.registry.json"))
    element, _ = pick(find_captures([str(CAPTURES / capture)])[0], number, form=None, schemas=schemas)
    return Explainer(handlers, schemas=schemas, show_values=show_values).explain(element, f"here:{number}")


def explain_value(value: Any, handlers: Sequence[Any] = HANDLERS, **options: Any) -> Explanation:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Explainer(handlers, **options).explain(Message(data), "here:1")


def find(capture: str, table: str, op: str, nth: int = 1) -> int:
    """Return the line of the nth change of a kind in a capture without schemas."""
    found = 0
    for number, line in enumerate((CAPTURES / capture).read_text().splitlines(), 1):
        value = json.loads(line).get("value") or {}
        if value.get("op") == op and value["source"]["table"] == table:
            found += 1
            if found == nth:
                return number
    raise AssertionError(f"{capture} has no {op} of {table}")


OFF = "forum_schemas_off.records.ndjson"


def change(
    after: Any = None, before: Any = None, *, op: str = "c", table: str = "users", **source: Any
) -> dict[str, Any]:
    where = {"name": "x", "schema": "public", "table": table, **source}
    return {"before": before, "after": after, "source": where, "op": op}


# ── which message ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_target_names_a_file_and_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "with:colon", "ends:7"):
        Path(name).touch()

    targets = ["plain", "plain:3", "with:colon", "with:colon:3", "ends:7", "ends:7:2", "plain: message 4", "-", "-:5"]
    targets += ["gs://bucket/day.ndjson:8", "gs://bucket/day.ndjson", "missing:3"]
    assert [parse_target(target) for target in targets] == [
        ("plain", None), ("plain", 3), ("with:colon", None), ("with:colon", 3), ("ends:7", None), ("ends:7", 2),
        ("plain", 4), ("-", None), ("-", 5), ("gs://bucket/day.ndjson", 8), ("gs://bucket/day.ndjson", None),
        ("missing:3", None),
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["0", "x", "", "-1", "1.5", "9" * 30])
def test_what_is_no_number_is_refused(tmp_path, number):
    file = tmp_path / "capture"
    file.touch()

    with pytest.raises(UsageError, match=r"capture:.*(counted from 1|is no number of a message; write)"):
        parse_target(f"{file}:{number}")


def test_lines_are_counted_as_editors_count_them(tmp_path):
    file = tmp_path / "made.ndjson"
    file.write_text('\n{"a":1}\n\n{"a":2}\n')
    capture = find_captures([str(file)])[0]

    picked = {number: pick(capture, number, form="values") for number in (None, 2, 4)}

    assert picked == {
        None: (Message(b'{"a":1}'), f"{file}:2"),
        2: (Message(b'{"a":1}'), f"{file}:2"),
        4: (Message(b'{"a":2}'), f"{file}:4"),
    }
    with pytest.raises(
        UsageError, match=r"made\.ndjson:3: this line is blank; the next message is at .*made\.ndjson:4"
    ):
        pick(capture, 3, form="values")
    with pytest.raises(UsageError, match=r"made\.ndjson:9: there is no such message; the last is at .*made\.ndjson:4"):
        pick(capture, 9, form="values")


def test_a_capture_of_nothing_has_no_message(tmp_path):
    file = tmp_path / "made.ndjson"
    file.write_text("\n")

    with pytest.raises(UsageError, match=r"made\.ndjson: there is no message in it"):
        pick(find_captures([str(file)])[0], None, form=None)


# ── what becomes of it ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_is_explained_whole():
    number = find(OFF, "users", "u")
    record = json.loads((CAPTURES / OFF).read_text().splitlines()[number - 1])
    source, transaction = record["value"]["source"], record["value"]["transaction"]

    told = explain(OFF, number)

    assert told == Explanation(
        place=f"here:{number}",
        size_bytes=len(json.dumps(record["value"], ensure_ascii=False, separators=(",", ":")).encode()),
        outcome="handled",
        reason="by load",
        form="JSON without schema: an envelope",
        ordering_key='{"id":1}',
        attributes=dict(record["headers"]) | {"destination": "forum.public.users"},
        table="public.users",
        operation="update",
        source={
            "connector": "forum",
            "kind": "postgresql",
            "version": "3.6.3.Final",
            "database": "forum",
            "lsn": f"{source['lsn'] >> 32:X}/{source['lsn'] & 0xFFFFFFFF:X}",
            "committed_at": "2026-11-23T14:15:12.142+00:00",
            "transaction": transaction["id"],
            "transaction_order": transaction["total_order"],
            "snapshot": "false",
            "message_prefix": None,
        },
        lane='{"id":1}',
        lane_from="the message's ordering key",
        handlers=[
            Answer("greet", told.handlers[0].place, takes_it=False, because=["ops has create, delete, and not update"]),
            Answer("load", told.handlers[1].place, takes_it=True, because=["ops has update"]),
        ],
        changed_unknown=(
            f"public.users: this update carries no row as it was before (lsn {told.source and told.source['lsn']}), so "
            "what changed is not known. Cure: ALTER TABLE public.users REPLICA IDENTITY FULL"
        ),
        images=[
            Image(
                "after",
                "User",
                cells=[Cell("id", 1, "1"), Cell("handle", "user1", "'user1'")],
                unnamed_columns=["email", "joined", "karma"],
            )
        ],
    )


@pytest.mark.parametrize(
    ("capture", "form"),
    [
        ("forum_schemas_off.values.ndjson", "JSON without schema: an envelope"),
        ("forum_schemas_on.values.ndjson", "JSON with its schema, forum.public.posts.Envelope: an envelope"),
        ("forum_avro.values.b64", "Avro with schema id 2, forum.public.posts.Envelope: an envelope"),
    ],
)
def test_one_row_is_the_same_in_every_form(capture, form):
    told = explain(capture, 1)

    assert (told.outcome, told.form) == ("dropped", form)
    assert told.reason == "snapshot_read: a row that a snapshot read; handlers with snapshot=True take those"
    assert told.lane_from is None
    assert [(cell.column, cell.value, cell.problem) for cell in told.images[0].cells] == [
        ("id", "1", None),
        ("body", "'First post'", None),
        ("published", "date 2025-03-01", None),
    ]


@pytest.mark.parametrize(
    ("value", "reason", "form"),
    [
        (b"", "tombstone", "no data"),
        ({"ts_ms": 1}, "heartbeat", "JSON without schema: an object"),
        (
            {"status": "BEGIN", "id": "1:2", "event_count": None, "data_collections": None, "ts_ms": 1},
            "transaction",
            "JSON without schema: an object",
        ),
        (
            {"source": {}, "databaseName": "x", "ddl": "DROP TABLE t"},
            "schema_change",
            "JSON without schema: an object",
        ),
    ],
)
def test_what_is_no_change_is_dropped_with_a_reason(value, reason, form):
    told = explain_value(value)

    assert (told.outcome, told.reason.partition(":")[0], told.form, told.exit_status) == ("dropped", reason, form, 0)


def test_a_logical_message_is_named_by_its_prefix():
    source = {"name": "x", "schema": "", "table": "", "lsn": 1, "ts_ms": 1}
    told = explain_value({"op": "m", "source": source, "message": {"prefix": "note", "content": "YQ=="}})

    assert (told.outcome, told.reason.partition(":")[0], told.table, told.operation) == (
        "dropped", "logical_message", None, "message",
    )  # fmt: skip
    assert told.source is not None
    assert told.source["message_prefix"] == "note"


def test_flattened_rows_and_cloud_events_are_told_from_envelopes():
    flat = {"id": 1, "handle": "a", "__op": "c", "__table": "users", "__schema": "public", "__snapshot": "false"}
    event = {
        "id": "1", "source": "/debezium/x", "specversion": "1.0", "type": "io.debezium.postgresql.datachangeevent",
        "iodebeziumop": "c", "iodebeziumname": "x", "iodebeziumschema": "public", "iodebeziumtable": "users",
        "iodebeziumlsn": "5", "iodebeziumtxId": "7", "iodebeziumsnapshot": "false",
        "data": {"before": None, "after": {"id": 1, "handle": "a"}},
    }  # fmt: skip

    for value, form, lsn, transaction in (
        (flat, "JSON without schema: a row that the unwrap transform flattened", None, None),
        (event, "JSON without schema: a CloudEvent, its data", "0/5", "7"),
    ):
        told = explain_value(value)
        assert (told.outcome, told.reason, told.form) == ("handled", "by greet, load", form)
        assert told.source is not None
        assert (told.source["lsn"], told.source["transaction"], told.source["snapshot"]) == (lsn, transaction, "false")


def test_a_change_that_nobody_wants_shows_its_row_all_the_same():
    told = explain("forum_avro.values.b64", 1, handlers=())

    assert (told.outcome, told.handlers, told.images[0].model) == ("dropped", [], "nobody")
    assert [(c.column, c.value) for c in told.images[0].cells if c.value] == [
        ("score", "Decimal 3.50"), ("published", "date 2025-03-01")
    ]  # fmt: skip
    unhandled = explain_value(change({"id": 1}, table="others"))
    assert (unhandled.outcome, unhandled.reason, unhandled.exit_status) == (
        "acknowledged", "no handler has a Row for public.others", 0,
    )  # fmt: skip


def test_when_changed_is_answered_for_each_handler():
    told = explain(OFF, find(OFF, "comments", "u"))

    assert [(a.handler, a.takes_it, a.because) for a in told.handlers] == [
        ("moderate", True, ["ops has update", "when_changed=text: text changed"]),
        ("move", False, ["ops has update", "when_changed=id: none of these changed"]),
    ]
    assert (told.outcome, told.reason, told.changed_columns) == ("handled", "by moderate", ["text"])
    assert [image.name for image in told.images] == ["before", "after"]


def test_when_changed_without_a_row_before_ends_among_the_dead_letters():
    told = explain(OFF, find(OFF, "posts", "u"))

    [answer] = told.handlers
    assert (told.outcome, told.exit_status, answer.takes_it) == ("dead letter", 1, False)
    assert answer.because[1].startswith(
        "when_changed=body cannot be answered: public.posts: this update carries no row"
    )
    body = told.images[0].cells[1]
    assert (body.column, body.value, body.is_sent) == ("body", None, False)
    assert body.problem is not None
    assert "column body was not sent" in body.problem


def test_a_row_that_cannot_be_read_shows_which_of_its_columns_can():
    told = explain_value(change({"post": 1, "voter": "x", "value": None, "more": 1}, table="votes"))

    assert (told.outcome, told.exit_status) == ("unreadable", 1)
    assert told.reason.startswith("count will fail on the row after: public.votes does not fit Vote: voter: ")
    [image] = told.images
    assert image.unnamed_columns == ["more"]
    assert image.cells == [
        Cell("post", 1, "1"),
        Cell("voter", "x", None, "Input should be a valid integer"),
        Cell("value", None, None, image.cells[2].problem),
    ]


def test_a_column_that_the_row_needs_and_the_message_lacks_is_named():
    told = explain_value(change({"id": 1}))

    assert [(cell.column, cell.wire, cell.problem) for cell in told.images[0].cells] == [
        ("id", 1, None), ("handle", "(not in the message)", "the row has no such column")
    ]  # fmt: skip


def test_a_delete_shows_which_columns_were_not_sent():
    told = explain(OFF, find(OFF, "votes", "d"))

    assert [(c.column, c.is_sent) for c in told.images[0].cells] == [("post", True), ("voter", True), ("value", False)]
    assert (told.outcome, told.exit_status) == ("handled", 0)


@pytest.mark.parametrize(
    ("value", "lane", "lane_from"),
    [
        (change({"id": 1, "handle": "a"}), {"id": 1}, "the Row's key columns, for the message has no ordering key"),
        (change({"handle": "a"}), "the whole table", "the row lacks its key: id"),
        (change({"page": "/"}, table="visits"), "the whole table", "its Row names no key columns"),
        (change(op="t"), "all lanes of the table", "a truncate: it waits for all and all wait for it"),
    ],
)
def test_a_lane_is_told_and_where_it_comes_from(value, lane, lane_from):
    told = explain_value(value, (load, visit))

    assert (told.lane, told.lane_from) == (lane, lane_from)


@pytest.mark.parametrize("data", [b"\xff\x00nothing", b'{"a":', b"\x00\x00\x00\x03\xe7\x01", b"[]", b"null"])
def test_what_cannot_be_decoded_shows_its_first_bytes(data):
    told = explain_value(data)

    assert (told.outcome, told.exit_status, told.images) == ("undecodable", 1, [])
    assert told.reason
    assert told.first_bytes is not None
    assert bytes.fromhex(told.first_bytes["hex"]) == data
    assert len(told.first_bytes["text"]) == len(data)


def test_a_line_that_is_no_message_is_undecodable_too(tmp_path):
    file = tmp_path / "made.ndjson"
    good = '{"topic":"t","key":null,"value":{"ts_ms":1}}\n'
    file.write_text(good + '{"topic":"t","key":null}\n')
    element, place = pick(find_captures([str(file)])[0], 2, form="records")

    told = Explainer(()).explain(element, place)

    assert (told.outcome, told.exit_status, told.place) == ("undecodable", 1, f"{file}:2")


def test_values_can_be_kept_back():
    secret = {"id": 4711, "handle": "secret-name", "email": ["secret-mail"]}
    value = change(secret, {**secret, "handle": "secret-was"}, op="u")
    message = Message(json.dumps(value).encode(), {"h": "secret-header"}, '{"id":4711}')

    told = Explainer((load,), show_values=False).explain(message, "here:1")

    text = render(told)
    assert "secret" not in text
    assert "4711" not in text
    assert told.images[1].cells == [Cell("id", "(int)", "int"), Cell("handle", "(str, 11 long)", "str")]
    assert explain_value(b"secret", show_values=False).first_bytes is None


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_text_says_the_outcome_first():
    text = render(explain(OFF, find(OFF, "comments", "u"))).splitlines()

    assert text[0] == f"here:{find(OFF, 'comments', 'u')}: handled: by moderate"
    assert "  operation          update" in text
    assert '  lane               {"id":2} (the message\'s ordering key)' in text
    assert "  changed            text" in text
    assert "Handlers of public.comments: do they take it?" in text
    assert "Row after, as Comment reads it" in text
    assert any(line.split() == ["not", "named", "author,", "post"] for line in text)


def test_control_characters_do_not_reach_the_terminal():
    told = explain_value(change({"id": 1, "handle": "\x1b[31m\x9b red \u202e", "\x1b]0;": 1}), (load,))

    assert all(line.isprintable() for line in render(told).splitlines())


def test_numbers_beyond_every_bound_are_shown():
    told = explain_value(b'{"before":null,"after":{"id":' + b"9" * 5000 + b',"handle":"a"},"source":'
                         b'{"name":"x","schema":"public","table":"users","ts_ms":99999999999999999},"op":"c"}')  # fmt: skip

    assert told.source is not None
    assert told.source["committed_at"] == "99999999999999999 ms"
    assert "here:1" in render(told)


def test_bytes_and_special_floats_of_avro_can_be_written():
    from cdc_reactor.explain import _jsonable

    assert _jsonable({"a": b"\x01", "b": [float("nan"), 1.5, None, True], "c": base64}) == {
        "a": "0x01", "b": ["nan", 1.5, None, True], "c": str(base64),
    }  # fmt: skip


def test_a_handler_is_described_by_all_that_it_declares():
    assert describe(greet) == {
        "table": "public.users",
        "handler": "greet",
        "row": "User",
        "key": ["id"],
        "identity": None,
        "ops": ["create", "delete"],
        "when_changed": [],
        "snapshot": False,
        "max_size": 100,
        "max_wait": 0.5,
        "max_attempts": 5,
        "timeout": 5,
        "on_poison": "skip",
        "is_async": False,
        "owner": "team-a",
        "place": describe(greet)["place"],
    }
    assert describe(visit)["is_async"] is True
