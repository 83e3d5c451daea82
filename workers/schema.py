"""The tables that workers here keep, and how rows get into them."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, Table
from sqlalchemy.orm import Session

from table_handlers.schema import insert_into, metadata

reputations = Table(
    "reputations",
    metadata,
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("points", Integer, nullable=False),
)
rewarded_upvotes = Table(
    "rewarded_upvotes",
    metadata,
    Column("post", BigInteger, primary_key=True, autoincrement=False),
    Column("voter", Integer, primary_key=True, autoincrement=False),
)

__all__ = ["add_points", "insert_once", "metadata", "reputations", "rewarded_upvotes"]


def insert_once(session: Session, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless it is there; tell whether it is new. Of two transactions at once one waits for the other."""
    statement = insert_into(session, table).values(**row).on_conflict_do_nothing()
    return bool(session.execute(statement.returning(*table.primary_key.columns)).all())


def add_points(session: Session, user_id: int, points: int) -> None:
    """Add to a user's reputation, whoever else does so at the same time."""
    statement = insert_into(session, reputations).values(user_id=user_id, points=points)
    more = reputations.c.points + statement.excluded.points
    session.execute(statement.on_conflict_do_update(index_elements=[reputations.c.user_id], set_={"points": more}))
