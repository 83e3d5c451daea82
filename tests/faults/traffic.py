"""What fault tests publish: real Debezium envelopes, each with the row it belongs to and its place in that row.

The envelopes are an insert and an update of tests/captures with other numbers in them: the row is `id`, its changes
count up in `karma`, and a change that fails has the handle "poison" (always) or "flaky" (the first time). Messages
carry the record key as ordering key, as Debezium Server's Pub/Sub sink sends them (DESIGN §6.4). Neighbour: `stage`,
which publishes to a broker that it started.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.pubsub_v1.types import PublishRequest, PublishResponse

from tests.faults.checker import Letter

_CAPTURE = Path(__file__).parents[1] / "captures" / "forum_schemas_off.records.ndjson"
#: Requests on one channel at a time.
_IN_FLIGHT = 500

_REQUEST: Any = PublishRequest.pb()
_RESPONSE: Any = PublishResponse.pb()


class Change(NamedTuple):
    """The `seq`-th change (from 0) of a row; `handle` says how handlers take it: "user", "poison" or "flaky"."""

    row: int
    seq: int
    handle: str = "user"

    @property
    def is_poison(self) -> bool:
        return self.handle == "poison"


def schedule(changes: int, rows: int, *, seed: int, first_seq: int = 0) -> list[Change]:
    """Mix the changes of rows 1 to `rows`, each row's in order; all rows have the same number of them."""
    rng = random.Random(seed)
    order = list(range(1, rows + 1))
    found = []
    for seq in range(first_seq, first_seq + changes // rows):
        rng.shuffle(order)
        found += [Change(row, seq) for row in order]
    return found


def poisoned(changes: Sequence[Change], share: float, rows: int, *, seed: int) -> list[Change]:
    """Poison exactly that share of the changes, all of them among the first `rows` rows."""
    candidates = [place for place, change in enumerate(changes) if change.row <= rows]
    chosen = set(random.Random(seed).sample(candidates, round(share * len(changes))))
    return [c._replace(handle="poison") if place in chosen else c for place, c in enumerate(changes)]


def flaky(changes: Sequence[Change], share: float, *, seed: int) -> list[Change]:
    """Let exactly that share of the changes fail when they are tried for the first time."""
    chosen = set(random.Random(seed).sample(range(len(changes)), round(share * len(changes))))
    return [c._replace(handle="flaky") if place in chosen else c for place, c in enumerate(changes)]


def published(changes: Iterable[Change]) -> dict[int, int]:
    """Say how many changes each row has."""
    return {row: seq + 1 for row, seq, _ in changes}


def poison(changes: Iterable[Change]) -> dict[tuple[int, int], bytes]:
    """Say which changes are poison, with their bytes."""
    return {(c.row, c.seq): body(c) for c in changes if c.is_poison}


def body(change: Change, *, size_bytes: int = 0) -> bytes:
    """Write the envelope of a change; longer ones get a longer e-mail address."""
    form = _form("c" if change.seq == 0 else "u")
    data = form % {
        b"row": change.row,
        b"seq": change.seq,
        b"handle": change.handle.encode(),
        b"lsn": 25_000_000 + 1000 * change.seq + change.row,
        b"padding": b"",
    }
    return data.replace(b"@forum", b"@" + b"x" * max(0, size_bytes - len(data)) + b"forum")


@cache
def _form(op: str) -> bytes:
    """Make a form of the first captured change of that kind of a user."""
    with _CAPTURE.open() as lines:
        values = [r["value"] for r in map(json.loads, lines) if r["destination"] == "forum.public.users" and r["value"]]
    value = next(v for v in values if v["op"] == op)
    value["after"] |= {"id": "%(row)d", "karma": "%(seq)d", "handle": "%(handle)s", "email": "user@forum.example"}
    value["source"] |= {"lsn": "%(lsn)d", "sequence": '[null,"%(lsn)d"]'}
    text = json.dumps(value, separators=(",", ":"))
    for number in ("row", "seq", "lsn"):
        text = text.replace(f'"%({number})d"', f"%({number})d", 1)
    return text.encode()


def ordering_key(row: int) -> str:
    """Write the record key of a row as Debezium does with schemas off."""
    return f'{{"id":{row}}}'


def letter(data: bytes) -> Letter:
    """Read a dead letter."""
    after = json.loads(data)["after"]
    return Letter(after["id"], after["karma"], data)


def requests(topic: str, changes: Iterable[Change], *, size_bytes: int = 0) -> list[Any]:
    """Make the publish requests of changes, one for each row, because one request may have one ordering key only.

    https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#publishrequest
    """
    found: dict[int, Any] = {}
    for change in changes:
        request = found.get(change.row)
        if request is None:
            request = found[change.row] = _REQUEST(topic=topic)
        request.messages.add(data=body(change, size_bytes=size_bytes), ordering_key=ordering_key(change.row))
    return list(found.values())


class Outlet:
    """Publishes on one channel; close it when done."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._publish = self._channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            request_serializer=_REQUEST.SerializeToString,
            response_deserializer=_RESPONSE.FromString,
        )

    def publish(self, topic: str, changes: Iterable[Change], *, size_bytes: int = 0, at_once: int = 500) -> int:
        """Publish changes, each row's in order, and return how many were confirmed: all.

        What is published at once is confirmed before anything after it is sent, whatever its row.
        """
        confirmed = 0
        rest = iter(changes)
        while chunk := list(islice(rest, at_once)):
            waiting = iter(requests(topic, chunk, size_bytes=size_bytes))
            while some := list(islice(waiting, _IN_FLIGHT)):
                sent = [self._publish.future(request, timeout=60, wait_for_ready=True) for request in some]
                confirmed += sum(len(answer.result().message_ids) for answer in sent)
        return confirmed

    def close(self) -> None:
        self._channel.close()
