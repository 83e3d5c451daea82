"""The engine behind `ctx.session`: opened from a URL, checked before anything is handled."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.handlers import Handler
from cdc_reactor.workers import Worker

# How long, in seconds, somebody waits for a connection of the pool.
_POOL_TIMEOUT = 5.0


def open_engine(url: str, *, connections: int | None = None) -> Engine:
    """Open an engine; `postgresql://` means psycopg 3, and a SQLite file's folder is made.

    So many `connections` are kept, and as many more opened while they are needed; SQLAlchemy's own numbers by default.

    Raises:
        UsageError: the URL cannot be read, or its driver is not installed. Passwords are not shown.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        # Who finds none free tries again a little later, uncounted: better than to stand still for half a minute.
        pool = (
            {}
            if connections is None
            else {"pool_size": connections, "max_overflow": connections, "pool_timeout": _POOL_TIMEOUT}
        )
        engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True, **pool)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise UsageError(
            f"--database-url: {_reason(error)}; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _make_folder)
        event.listen(engine, "connect", _tune_sqlite)
    return engine


def _reason(error: Exception) -> str:
    # SQLAlchemy's own message repeats the URL, password and all.
    if isinstance(error, NoSuchModuleError | ImportError):
        return "no driver for this kind of database is installed"
    return "this is no database URL"


def _make_folder(_dialect: Any, _record: Any, arguments: Any, _options: Any) -> None:
    database = str(arguments[0]) if arguments else ""
    if database and database != ":memory:" and not database.startswith("file:"):
        try:
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorldError(f"the folder of the SQLite file {database} cannot be made: {error.strerror}") from error


def _tune_sqlite(connection: Any, _: Any) -> None:
    # Several processes write to one file: readers do not block, writers wait for each other.
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA foreign_keys=ON")
    # The change to WAL waits for nobody; whoever comes second finds it made.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def check(engine: Engine) -> None:
    """Connect once; WorldError, without a password, where nothing answers."""
    try:
        with engine.connect():
            return
    except SQLAlchemyError as error:
        raise _refused(engine, "does not answer", error) from error


def metadata_of(handlers: Sequence[Handler[Any] | Worker[Any]]) -> list[MetaData]:
    """Find `metadata` in the packages of handlers and workers, each once."""
    packages = {handler.function.__module__.partition(".")[0] for handler in handlers}
    found = (getattr(sys.modules.get(name), "metadata", None) for name in sorted(packages))
    return list(dict.fromkeys(metadata for metadata in found if isinstance(metadata, MetaData)))


def create_tables(engine: Engine, metadata: MetaData) -> None:
    """Create what is missing; WorldError where the database refuses."""
    try:
        metadata.create_all(engine)
    except SQLAlchemyError as error:
        raise _refused(engine, "does not let us create the handlers' tables", error) from error


def _refused(engine: Engine, what: str, error: SQLAlchemyError) -> WorldError:
    cause = str(getattr(error, "orig", None) or "").strip()
    detail = cause.splitlines()[0] if cause else type(error).__name__
    return WorldError(f"the database {engine.url.render_as_string(hide_password=True)} {what}: {detail}")
