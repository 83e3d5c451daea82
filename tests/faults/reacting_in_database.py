"""The handler of fault tests whose effects are rows of a database: what is applied is what was committed.

The order of `number` is the order per row, because a row's next change is handed out after the commit of the one before.
Variables as for `reacting`: …_WORK, …_BATCH and …_WAIT.
"""

from __future__ import annotations

import os
import threading
import time

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text, insert

from cdc_reactor import Batch, Context, Create, Row, Update, handles

metadata = MetaData()

effects = Table(
    "faults_effects",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("row", Integer),
    Column("seq", Integer),
    Column("op", Text),
    Column("pid", Integer),
    Column("time", Double),
)

_WORK = float(os.environ.get("CDC_REACTOR_FAULTS_WORK", "0"))
_BATCH = int(os.environ.get("CDC_REACTOR_FAULTS_BATCH", "100"))
_never = threading.Event()


class User(Row, table="public.users"):
    """The rows of `traffic`."""

    id: int
    karma: int


@handles(User, max_size=_BATCH, max_wait=0.05)
def apply(batch: Batch[User], ctx: Context) -> None:
    """Insert one row for each change."""
    if _WORK:
        _never.wait(_WORK)
    now, pid = time.monotonic(), os.getpid()
    ctx.session.execute(
        insert(effects),
        [
            {
                "row": change.after.id,
                "seq": change.after.karma,
                "op": "c" if isinstance(change, Create) else "u",
                "pid": pid,
                "time": now,
            }
            for change in batch
            if isinstance(change, Create | Update)
        ],
    )
