"""The messages that are measured: captured changes of the forum's five tables, its Row models, and what is in them.

The captures are Debezium's own output (tests/captures/manifest.json says of which version). Only creates, updates and
deletes count here: what is dropped costs less than what is handled, and would flatter us.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import orjson
from pydantic import Json

from benchmarks.harness import Corpus
from cdc_reactor.changes import Batch, Row
from cdc_reactor.columns import DecimalBytes, MicroTimestamp, Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.handlers import Context, Handler, handles
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.routing import CdcRouter

_CAPTURES = Path(__file__).resolve().parents[1] / "tests" / "captures"

#: Debezium's JSON with its schema block and without.
FORMS: Mapping[str, str] = {
    "schema-on": "forum_schemas_on.values.ndjson",
    "schema-off": "forum_schemas_off.values.ndjson",
}

MAX_SIZE = 250


class User(Row, table="public.users"):
    """Every column of public.users."""

    id: int
    handle: str
    email: str | None
    karma: int | None
    joined: datetime | None


class Post(Row, table="public.posts"):
    """Every column of public.posts."""

    id: int
    author: int
    title: str | None
    body: str | None
    tags: list[str | None] | None
    meta: Json[Any] | None
    score: Annotated[Decimal, DecimalBytes(2)] | None
    published: date | None


class Comment(Row, table="public.comments"):
    """Every column of public.comments."""

    id: int
    post: int | None
    author: int | None
    text: str | None


class Vote(Row, table="public.votes", key=("post", "voter")):
    """Every column of public.votes."""

    post: int
    voter: int
    value: int | None


class Visit(Row, table="public.visits"):
    """Every column of public.visits, which has no key."""

    at: MicroTimestamp | None
    page: str | None


ROWS: Sequence[type[Row]] = (User, Post, Comment, Vote, Visit)

#: How a handler looks at a batch.
Reading: TypeAlias = Callable[[Batch[Any]], object]


def iterate(batch: Batch[Any]) -> None:
    """Look at every change and at no row."""
    for _ in batch:
        pass


def read_columns(batch: Batch[Any]) -> None:
    """Read both images of every change as dicts of wire values."""
    for change in batch:
        _ = change.columns


def read_rows(batch: Batch[Any]) -> None:
    """Read both images of every change as rows of the table's model."""
    for change in batch:
        _ = change.before, change.after


#: The three ways of reading, which are never mixed.
READINGS: Mapping[str, Reading] = {"lazy": iterate, "dicts": read_columns, "pydantic": read_rows}


def handlers(read: Reading) -> list[Handler[Any]]:
    """Make a handler for each table that reads its batches so and does nothing else."""

    def handler(batch: Batch, _: Context) -> None:
        read(batch)

    return [handles(row, name=row.__name__.lower(), max_size=MAX_SIZE)(handler) for row in ROWS]


def router(read: Reading = iterate) -> CdcRouter:
    """Make a router for all five tables, with nothing decoded yet."""
    return CdcRouter(handlers(read), Decoder())


def captured(form: str) -> list[bytes]:
    """Return the captured creates, updates and deletes of one form, each once, in their order."""
    lines = (_CAPTURES / FORMS[form]).read_bytes().splitlines()
    return [line for line in lines if _payload(line).get("op") in ("c", "u", "d")]


def endless(form: str) -> Iterator[bytes]:
    """Repeat the captured changes of one form for ever."""
    return cycle(captured(form))


def copies(form: str, count: int) -> list[bytes]:
    """Return so many messages, each an object of its own, so that none is in the processor's cache already."""
    return [bytes(memoryview(data)) for data in islice(endless(form), count)]


def delivered(bodies: Sequence[bytes]) -> list[Delivery]:
    """Make a message and a delivery of each, as a transport does."""
    return [Delivery(Message(data), None) for data in bodies]


def size_of(bodies: Sequence[bytes]) -> Corpus:
    """Say how much these are."""
    return Corpus(messages=len(bodies), size_bytes=sum(map(len, bodies)))


class Content(NamedTuple):
    """What a message says, whoever read it."""

    op: str
    table: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def by_orjson(data: bytes) -> Content:
    """Read a message the way that we are compared with."""
    return content_of(orjson.loads(data))


def content_of(message: Mapping[str, Any]) -> Content:
    """Say what is in a message that somebody else parsed."""
    payload = message.get("payload", message)
    source = payload["source"]
    return Content(payload["op"], f"{source['schema']}.{source['table']}", payload["before"], payload["after"])


def by_columns(change: Any) -> Content:
    """Say what is in a change, as its dicts have it."""
    before, after = change.columns
    return Content(change.op.value, str(change.table_id), before, after)


def by_rows(change: Any) -> Content:
    """Say what is in a change, as its rows have it: the columns that were sent, as Python values."""
    before, after = (row if row is None else dict(row.__dict__) for row in (change.before, change.after))
    return Content(change.op.value, str(change.table_id), before, after)


def as_rows(content: Content) -> Content:
    """Convert what orjson read into what the rows should hold, by other means than ours."""
    before, after = (None if image is None else _converted(content, image) for image in (content.before, content.after))
    return Content(content.op, content.table, before, after)


def _converted(content: Content, image: Mapping[str, Any]) -> dict[str, Any]:
    names = set(image)
    if content.table == "public.users" and content.op == "d":
        names = {"id"}  # its replica identity is not full: Debezium fills the other columns with nothing
    if content.table == "public.votes" and content.op == "d":
        names = {"post", "voter"}
    return {
        name: value if value is None or name not in _PYTHON else _PYTHON[name](value)
        for name, value in image.items()
        if name in names and value != Placeholder().text
    }


def _decimal(text: str) -> Decimal:
    return Decimal(int.from_bytes(base64.b64decode(text), signed=True)).scaleb(-2)


_PYTHON: Mapping[str, Callable[[Any], Any]] = {
    "joined": datetime.fromisoformat,
    "meta": orjson.loads,
    "score": _decimal,
    "published": lambda days: date(1970, 1, 1) + timedelta(days),
    "at": lambda us: datetime(1970, 1, 1) + timedelta(microseconds=us),  # noqa: DTZ001 - a timestamp without time zone
}


def check_equal(ours: Iterable[Content], theirs: Iterable[Content], what: str) -> None:
    """Refuse to measure two sides that do not read the same; they must agree message by message."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        if mine != other:
            raise AssertionError(f"{what}: message {number} reads differently: {mine} and {other}")


def _payload(line: bytes) -> Mapping[str, Any]:
    value = orjson.loads(line)
    payload = value.get("payload", value)
    return payload if isinstance(payload, dict) else {}
