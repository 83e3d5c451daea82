"""The broker on disk: one SQLite file, written in groups by one thread.

WAL with synchronous=FULL: what `write` returned from survives a power cut. Runs of the journal become executemany
calls of one transaction. A message's row lives until nobody needs it; an ack removes it or, where others still hold it,
adds a row. A store belongs to one broker: the folder is locked while it is open.

It must never decide anything: `recovery` makes a broker of what `load` returns.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.local.journal import Op

_VERSION = 1

_SCHEMA = """
CREATE TABLE resources (
    kind TEXT NOT NULL, name TEXT NOT NULL, uid INTEGER NOT NULL, topic_uid INTEGER NOT NULL, expires REAL NOT NULL,
    definition BLOB NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY, topic_uid INTEGER NOT NULL, published REAL NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE acked (seq INTEGER NOT NULL, subscription_uid INTEGER NOT NULL, PRIMARY KEY (seq, subscription_uid))
    WITHOUT ROWID;
CREATE TABLE held (seq INTEGER NOT NULL, holder_uid INTEGER NOT NULL, PRIMARY KEY (seq, holder_uid)) WITHOUT ROWID;
CREATE TABLE sequence (reserved INTEGER NOT NULL);
INSERT INTO sequence VALUES (0);
PRAGMA user_version = 1;
"""

_ANY_MARK = "SELECT EXISTS (SELECT 1 FROM acked) OR EXISTS (SELECT 1 FROM held)"

_STATEMENTS: dict[Op, tuple[str, ...]] = {
    Op.PUBLISHED: ("INSERT INTO messages VALUES (?, ?, ?, ?, ?)",),
    Op.GONE: (
        "DELETE FROM messages WHERE seq BETWEEN ? AND ?",
        "DELETE FROM acked WHERE seq BETWEEN ? AND ?",
        "DELETE FROM held WHERE seq BETWEEN ? AND ?",
    ),
    Op.ACKED: ("INSERT OR IGNORE INTO acked (subscription_uid, seq) VALUES (?, ?)",),
    Op.UNACKED: ("DELETE FROM acked WHERE subscription_uid = ? AND seq = ?",),
    Op.HELD: ("INSERT OR IGNORE INTO held (holder_uid, seq) VALUES (?, ?)",),
    Op.DEFINED: ("INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?, ?)",),
    Op.REMOVED: ("DELETE FROM resources WHERE kind = ? AND name = ?",),
    Op.RESERVED: ("UPDATE sequence SET reserved = ?",),
}


@dataclass(frozen=True, slots=True)
class Resource:
    """A topic, subscription, snapshot, schema or policy as it was written."""

    kind: str
    name: str
    uid: int
    topic_uid: int
    expires: float
    definition: bytes


class Store:
    """An open store; `open` and `close` it in any thread, and call the rest one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, lock: int) -> None:
        self._connection = connection
        self._lock = lock
        #: Whether `acked` or `held` may have rows of a message: most stores have none, and need no deletes there.
        self._has_marks = bool(connection.execute(_ANY_MARK).fetchone()[0])

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the store in a folder, or make one; raises WorldError when it cannot be used, UsageError when taken."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WorldError(f"the broker cannot keep its data in {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise UsageError(
                f"another broker keeps its data in {folder}; stop it, or give this one another folder with --data"
            ) from None
        try:
            return cls(_connect(folder / "broker.sqlite3"), lock)
        except sqlite3.Error as error:
            os.close(lock)
            raise WorldError(f"the broker cannot read its data in {folder}: {error}") from error
        except WorldError:
            os.close(lock)
            raise

    def close(self) -> None:
        """Close the file and let the folder go."""
        self._connection.close()
        os.close(self._lock)

    def write(self, runs: Sequence[tuple[Op, list[Any]]]) -> None:
        """Write what the journal collected in one transaction; it is safe when this returns. Raises sqlite3.Error."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for op, rows in runs:
                self._write_run(op, rows)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _write_run(self, op: Op, rows: list[Any]) -> None:
        if op in (Op.ACKED, Op.HELD):
            self._has_marks = True
        elif op is Op.DEFINED:
            rows = [(*row[:-1], _serialised(row[-1])) for row in rows]
        statements = _STATEMENTS[op]
        if op is Op.GONE:
            rows = _ranges(rows)
            statements = statements if self._has_marks else statements[:1]
        for statement in statements:
            self._connection.executemany(statement, rows)

    def reserved(self) -> int:
        """Return the number below which all are taken."""
        return int(self._connection.execute("SELECT reserved FROM sequence").fetchone()[0])

    def resources(self) -> list[Resource]:
        """Return what is defined, oldest first."""
        return [Resource(*row) for row in self._connection.execute("SELECT * FROM resources ORDER BY uid")]

    def messages(self) -> Iterator[tuple[int, int, float, str, bytes]]:
        """Return seq, topic uid, time, ordering key and body of each message, in order."""
        yield from self._connection.execute("SELECT * FROM messages ORDER BY seq")

    def acked(self) -> set[tuple[int, int]]:
        """Return seq and subscription uid of what is acked and still there."""
        return set(self._connection.execute("SELECT seq, subscription_uid FROM acked"))

    def held(self) -> set[tuple[int, int]]:
        """Return seq and uid of the snapshots and subscriptions that hold messages older than themselves."""
        return set(self._connection.execute("SELECT seq, holder_uid FROM held"))


def _ranges(rows: list[tuple[int]]) -> list[tuple[int, int]]:
    """Join numbers that follow each other: messages are mostly acked in order, and one statement then removes many."""
    ranges: list[tuple[int, int]] = []
    first = last = 0
    for (seq,) in sorted(rows):
        if seq != last + 1:
            if first:
                ranges.append((first, last))
            first = seq
        last = seq
    ranges.append((first, last))
    return ranges


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=32)
    try:
        # Pages so large that most messages need no overflow pages, which deleting would have to follow one by one;
        # and what is deleted need not be overwritten with zeros, as some builds of SQLite do by default.
        connection.execute("PRAGMA page_size = 32768")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT")
    elif version != _VERSION:
        raise WorldError(f"{path} was written by another version of the broker ({version}); give it another folder")


def _serialised(definition: Any) -> bytes:
    return definition if isinstance(definition, bytes) else bytes(definition.SerializeToString())
