"""The tables that handlers here derive from the forum's, and how rows get into them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

metadata = MetaData()

author_cards = Table(
    "author_cards",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("handle", Text, nullable=False),
)
counted_comments = Table(
    "counted_comments",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("post", BigInteger, nullable=False, index=True),
)
comment_counts = Table(
    "comment_counts",
    metadata,
    Column("post", BigInteger, primary_key=True, autoincrement=False),
    Column("comments", Integer, nullable=False),
)
published_posts = Table(
    "published_posts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("lsn", BigInteger, nullable=False),
)
post_authors = Table(
    "post_authors",
    metadata,
    Column("post", BigInteger, primary_key=True, autoincrement=False),
    Column("author", Integer, nullable=False),
)
counted_votes = Table(
    "counted_votes",
    metadata,
    Column("post", BigInteger, primary_key=True, autoincrement=False),
    Column("voter", Integer, primary_key=True, autoincrement=False),
    Column("lsn", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Integer, nullable=False),
)
page_visits = Table(
    "page_visits",
    metadata,
    Column("page", Text, primary_key=True),
    Column("at", DateTime, primary_key=True),
)

_INSERTS: Mapping[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert_into(session: Session, table: Table) -> Any:
    """Begin an INSERT of the session's kind of database, which may say what to do on a conflict."""
    return _INSERTS[session.get_bind().dialect.name](table)


def upsert(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or update those that are there already; the same rows twice change nothing."""
    if not rows:
        return
    statement = insert_into(session, table)
    values = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    keys = list(table.primary_key.columns)
    # A list of parameters, not .values([...]): one statement, compiled once, however many rows there are.
    if values:
        session.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)
    else:
        session.execute(statement.on_conflict_do_nothing(index_elements=keys), rows)
