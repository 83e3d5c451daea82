"""Databases of tests: an empty one for each, and the tables that teams' modules declare.

Used by `harness` and by the fixtures of `pytest_plugin`; `database` opens those of the daemon.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard
from uuid import uuid4

from sqlalchemy import Engine, MetaData, Table, create_engine, make_url, text
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import StaticPool

from cdc_reactor.database import open_engine


class Database:
    """An engine that lives as long as somebody looks at it; sessions of it are closed at the end."""

    def __init__(self, engine: Engine | None, url: str | None) -> None:
        self.engine = engine or (_memory() if url is None else open_engine(url))
        self._sessions: list[Session] = []
        weakref.finalize(self, _dispose, self._sessions, None if engine is not None else self.engine)

    @property
    def session(self) -> Session:
        """A new session."""
        session = Session(self.engine)
        self._sessions.append(session)
        return session


def _dispose(sessions: Sequence[Session], engine: Engine | None) -> None:
    for session in sessions:
        session.close()
    if engine is not None:
        engine.dispose()


def _memory() -> Engine:
    """Open a new SQLite database in memory; its one connection serves all threads."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def tables_of(modules: Iterable[str]) -> list[MetaData]:
    """Find the tables that modules use: in their packages' `metadata`, where `replay` looks; and those they import."""
    names = set(modules)
    packages = {name.partition(".")[0] for name in names}
    found = [getattr(sys.modules.get(name), "metadata", None) for name in sorted(names | packages)]
    for name in sorted(names & sys.modules.keys()):
        found.extend(value.metadata for value in vars(sys.modules[name]).values() if _is_table(value))
    return list({id(each): each for each in found if isinstance(each, MetaData)}.values())


def _is_table(value: object) -> TypeGuard[Table | type[DeclarativeBase]]:
    return isinstance(value, Table) or (isinstance(value, type) and isinstance(vars(value).get("__table__"), Table))


@contextmanager
def fresh_database(url: str | None = None) -> Iterator[Engine]:
    """Open an empty database and remove it afterwards: SQLite in memory, or a new schema of a PostgreSQL database."""
    if url is None:
        engine = _memory()
        try:
            yield engine
        finally:
            engine.dispose()
    elif make_url(url).get_backend_name() == "postgresql":
        with _fresh_schema(url) as engine:
            yield engine
    else:
        raise TypeError("a database for tests is PostgreSQL's, or SQLite in memory where no URL is given")


@contextmanager
def _fresh_schema(url: str) -> Iterator[Engine]:
    name = f"cdc_test_{uuid4().hex}"
    admin = open_engine(url)
    inside = make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
    engine = open_engine(inside.render_as_string(hide_password=False))
    try:
        with admin.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        yield engine
    finally:
        engine.dispose()
        with admin.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
        admin.dispose()
