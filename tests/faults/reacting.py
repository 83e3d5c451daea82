"""The handler that fault tests run in the daemon: it appends what it is given to the effect log.

A run is all or nothing, as a transaction is: it looks at the whole batch first, and then appends all of it in one
write. What it is told by variables: CDC_REACTOR_FAULTS_LOG, the effect log; …_RUNS, a file that gets a line for every
run (thread, attempt, then row:seq of each change, then a semicolon); …_WORK, how long a run takes, in seconds; …_BATCH
and …_WAIT, how batches are made.
"""

from __future__ import annotations

import os
import threading
import time

from cdc_reactor import Batch, Context, Create, Row, Update, handles


def _told(name: str, default: str = "") -> str:
    return os.environ.get(f"CDC_REACTOR_FAULTS_{name}", default)


def _opened(path: str) -> int | None:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None


_LOG = _opened(_told("LOG"))
_RUNS = _opened(_told("RUNS"))
_WORK = float(_told("WORK", "0"))
_never = threading.Event()


class User(Row, table="public.users"):
    """The rows of `traffic`: `karma` counts the changes of a row, `handle` says which of them fail."""

    id: int
    karma: int
    handle: str


@handles(User, max_size=int(_told("BATCH", "100")), max_wait=float(_told("WAIT", "0.05")))
def apply(batch: Batch[User], ctx: Context) -> None:
    """Append one line for each change, or none if one of them is poison."""
    rows = [(c.after, "c" if isinstance(c, Create) else "u") for c in batch if isinstance(c, Create | Update)]
    if _RUNS is not None:
        told = " ".join(f"{row.id}:{row.karma}" for row, _ in rows)
        os.write(_RUNS, f"\n{threading.get_ident()} {ctx.attempt} {told};".encode())
    if _WORK:
        _never.wait(_WORK)
    if any(row.handle == "poison" or (row.handle == "flaky" and ctx.attempt == 1) for row, _ in rows):
        raise RuntimeError("this change fails")
    now, pid = time.monotonic(), os.getpid()
    assert _LOG is not None, "CDC_REACTOR_FAULTS_LOG names the effect log"
    os.write(_LOG, "".join(f"\n{row.id} {row.karma} {op} {pid} {now:.6f};" for row, op in rows).encode())
