"""What the Pub/Sub benchmark publishes: captured changes as Debezium Server sends them, of many rows, in stated sizes.

Every message has the data, the ordering key and the attributes that were captured (tests/captures). Two things are
changed, so that a backlog is no repetition of 26 messages: rows get ids of their own, and a text column of each row
that has one is grown until the messages have the wanted mean size. Neighbours: `pubsub_feed` publishes them, `corpus`
has the Row models of their tables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

_CAPTURES = Path(__file__).resolve().parents[1] / "tests" / "captures"

# The column of each table that holds text of any length; votes have none.
_TEXT = {"users": "handle", "posts": "title", "comments": "text", "visits": "page"}

# In place of these digits each round through the captures puts its own: ids of 13 digits, new for every round.
_MARK = b"9000000000"
_FIRST = 1_000_000_000
_IDS = int(_MARK) * 1000

_WORDS = (*["lorem", "ipsum", "dolor", "sit", "amet", "2026"] * 8, "naïve", '"quoted"', "line\nbreak")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A kind of message: with or without Debezium's schema block, and how large in the mean; None: as captured.

    `per_response` is how many a response on a stream has at most, and `ease` about how many are consumed in the time of
    one of 2 KB.
    """

    name: str
    file: str
    size_bytes: int | None = None
    per_response: int = 250
    ease: float = 1.0


_OFF, _ON = "forum_schemas_off.records.ndjson", "forum_schemas_on.records.ndjson"

#: No captured message has 2 KB: with its schema block none is below 2.7, without it hardly one is above 0.7.
FORMS: Sequence[Form] = (
    Form(name="2 KB", file=_OFF, size_bytes=2048),
    Form(name="2 KB, 10 a response", file=_OFF, size_bytes=2048, per_response=10, ease=0.25),
    Form(name="3 KB schema-on", file=_ON, ease=0.8),
    Form(name="8 KB", file=_OFF, size_bytes=8192, ease=0.6),
)


class Published(NamedTuple):
    """A message to be published."""

    data: bytes
    ordering_key: str
    attributes: Mapping[str, str]


class _Template(NamedTuple):
    data: bytes
    ordering_key: str
    attributes: Mapping[str, str]

    def of_round(self, number: int) -> Published:
        digits = b"%d" % (_FIRST + number)
        return Published(
            self.data.replace(_MARK, digits),
            self.ordering_key.replace(_MARK.decode(), digits.decode()),
            self.attributes,
        )


def messages(form: Form, count: int) -> list[Published]:
    """Return the first so many messages of a form."""
    return list(islice(endless(form), count))


def mean_size_bytes(published: Sequence[Published]) -> int:
    """Say how large their data is in the mean."""
    return round(sum(len(message.data) for message in published) / len(published))


def form_named(name: str) -> Form:
    """Return the form of this name."""
    return next(form for form in FORMS if form.name == name)


def endless(form: Form) -> Iterator[Published]:
    """Give messages for ever; in every 26 the captured changes come in their order, of rows of their own."""
    templates = _templates(form)
    number = 0
    while True:
        for template in templates:
            yield template.of_round(number)
        number += 1


@cache
def _templates(form: Form) -> list[_Template]:
    records = [orjson.loads(line) for line in (_CAPTURES / form.file).read_bytes().splitlines()]
    changes = [record for record in records if _payload(record["value"]).get("op") in ("c", "u", "d")]
    for record in changes:
        _give_ids(record)
    if form.size_bytes is not None:
        _grow(changes, form.size_bytes)
    return [_template(record) for record in changes]


def _payload(value: Any) -> dict[str, Any]:
    """Return the part of a key or value that is not its schema; nothing where it is no object."""
    found = value.get("payload", value) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _images(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    payload = _payload(record["value"])
    return (image for image in (payload["before"], payload["after"]) if image is not None)


def _give_ids(record: Mapping[str, Any]) -> None:
    for row in (_payload(record["key"]), *_images(record)):
        for name in ("id", "voter"):
            if name in row:
                row[name] += _IDS


def _grow(changes: Sequence[Mapping[str, Any]], mean_bytes: int) -> None:
    """Lengthen all that can be to one size, which leaves the mean as wanted."""
    grown, left = [], len(changes) * mean_bytes
    for record in changes:
        if _columns(record):
            grown.append(record)
        else:
            left -= len(_dumped(record["value"]))
    for number, record in enumerate(grown):
        columns = _columns(record)
        missing = left // len(grown) - len(_dumped(record["value"]))
        for image, name in columns:
            image[name] = _text(number, missing // len(columns))


def _columns(record: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return where text can be put: an image and the name of its column, both images of a row where both were sent."""
    payload = _payload(record["value"])
    name = _TEXT.get(payload["source"]["table"])
    # The row of a deleted user was not sent, but for its key.
    if name is None or (payload["op"] == "d" and payload["source"]["table"] == "users"):
        return []
    return [(image, name) for image in _images(record)]


def _text(seed: int, size_bytes: int) -> str:
    """Return text that has about this size in JSON, of words, some of which JSON must escape."""
    chosen = random.Random(seed)
    words: list[str] = []
    while size_bytes > 0:
        words.append(chosen.choice(_WORDS))
        size_bytes -= len(_dumped(words[-1])) - 1
    return " ".join(words)


def _template(record: Mapping[str, Any]) -> _Template:
    key = record["key"]
    return _Template(
        _dumped(record["value"]),
        "" if key is None else _dumped(key).decode(),
        dict(record["headers"]),
    )


def _dumped(value: Any) -> bytes:
    return orjson.dumps(value)
