"""Which changes a replay lets through: by table, operation, commit time, log position, key.

A message that a filter keeps out is counted as filtered and looked at no further. What cannot be told (a range of
positions, and a connector that sends none) is kept out, because a wrong row applied costs more than one left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from cdc_reactor.envelope import Envelope, Lsn, Operation, is_null, read_image
from cdc_reactor.errors import DecodeError, UsageError
from cdc_reactor.messages import Message

Filter = Callable[[Envelope, Message], bool]

_OPERATIONS = {name: op for op in Operation for name in (op.value, op.name.lower())}


def build_filter(
    *,
    tables: Sequence[str] = (),
    operations: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    from_lsn: str | None = None,
    to_lsn: str | None = None,
    key: str | None = None,
) -> Filter | None:
    """Combine what was asked for; None where nothing was. Bounds belong to the range.

    Raises:
        UsageError: an option cannot be read.
    """
    parts: list[Filter] = []
    if tables:
        parts.append(_by_table(tables))
    if operations:
        parts.append(_by_operation(operations))
    if since is not None or until is not None:
        start, end = _milliseconds("--since", since), _milliseconds("--until", until)
        if start is not None and end is not None and start > end:
            raise UsageError(f"--since {since} is later than --until {until}")
        parts.append(_by_time(start, end))
    if from_lsn is not None or to_lsn is not None:
        parts.append(_by_lsn(_position("--from-lsn", from_lsn), _position("--to-lsn", to_lsn)))
    if key is not None:
        parts.append(_by_key(key))
    if not parts:
        return None
    return lambda envelope, message: all(part(envelope, message) for part in parts)


def _by_table(patterns: Sequence[str]) -> Filter:
    def accept(envelope: Envelope, _: Message) -> bool:
        table_id = envelope.source.table_id
        # A pattern without a dot means the table whatever its schema.
        return any(fnmatchcase(str(table_id) if "." in p else table_id.table, p) for p in patterns)

    return accept


def _by_operation(names: Sequence[str]) -> Filter:
    wanted = set()
    for name in (part.strip().lower() for names_ in names for part in names_.split(",")):
        if name not in _OPERATIONS:
            raise UsageError(
                f"--op {name}: no such operation; there are {', '.join(o.name.lower() for o in Operation)}"
            )
        wanted.add(_OPERATIONS[name])
    return lambda envelope, _: envelope.op in wanted


def _by_time(since: int | None, until: int | None) -> Filter:
    def accept(envelope: Envelope, _: Message) -> bool:
        ts_ms = envelope.source.ts_ms
        return ts_ms is not None and (since is None or ts_ms >= since) and (until is None or ts_ms <= until)

    return accept


def _milliseconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} {text}: no time; write 2026-11-23T14:00:00Z (UTC where no zone is given) "
            "or milliseconds since 1970"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _by_lsn(start: int | None, end: int | None) -> Filter:
    def accept(envelope: Envelope, _: Message) -> bool:
        lsn = envelope.source.lsn
        return lsn is not None and (start is None or lsn >= start) and (end is None or lsn <= end)

    return accept


def _position(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return Lsn.parse(text)
    except ValueError:
        raise UsageError(f"{option} {text}: no log position; write it as 16/B374D848 or as an integer") from None


def _by_key(text: str) -> Filter:
    try:
        wanted = json.loads(text)
    except ValueError:
        if text.startswith("{"):
            raise UsageError(f"--key {text}: this is no JSON object") from None
        wanted = text
    if isinstance(wanted, list | None):
        raise UsageError(f'--key {text}: write one value (42) or the key columns as an object ({{"id": 42}})')

    def accept(envelope: Envelope, message: Message) -> bool:
        return any(_holds(columns, wanted) for columns in _keys(envelope, message, whole=isinstance(wanted, dict)))

    return accept


def _keys(envelope: Envelope, message: Message, *, whole: bool) -> list[dict[str, Any]]:
    """Return what may be called the key of a message: its ordering key, else its row (all of it, or its `id`)."""
    try:
        key = json.loads(message.ordering_key) if message.ordering_key.startswith("{") else None
    except (ValueError, RecursionError):
        key = None
    if isinstance(key, dict):
        payload = key.get("payload", key)
        return [payload] if isinstance(payload, dict) else []
    image = envelope.before if is_null(envelope.after) else envelope.after
    try:
        row = read_image(image)
    except DecodeError:
        return []
    if row is None:
        return []
    return [row if whole else {"id": row.get("id")}]


def _holds(columns: dict[str, Any], wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all(column in columns and columns[column] == value for column, value in wanted.items())
    return any(value == wanted or _text(value) == str(wanted) for value in columns.values())


def _text(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return ""
