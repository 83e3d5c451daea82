"""Failures: what an exception of a team's function means for what it was handling, and what is told of it.

Shared by batches and messages, so that both mean the same by it. What is told holds no row data and no payload: the
class, the team's own line, and a text only where that is known to quote no values. Neighbours: `execution` and
`worker_execution` ask, `errors` has the tree.
"""

from __future__ import annotations

import re
import sqlite3
import sysconfig
import traceback
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from cdc_reactor.errors import Reject, Retry, SenderError, WorldError
from cdc_reactor.messages import Verdict
from cdc_reactor.reactor import Failure
from cdc_reactor.validation import told

#: How long a handler pauses when the world fails, in seconds.
WORLD_PAUSE = 1.0


def judge(error: BaseException) -> tuple[Verdict, Failure]:
    """Say what becomes of the one change or message that is to blame for an error; not for errors of the world."""
    match error:
        case Reject() | SenderError():
            return Verdict.DEAD_LETTER, Failure(error)
        case Retry():
            return Verdict.NACK, Failure(error, error.delay)
        case _:
            return Verdict.NACK, Failure(error, reason=describe(error))


def describe(error: BaseException) -> str:
    """Tell of a handler's failure its class, the team's own line, and its text where that is no row data."""
    place = place_of(error)
    text = _text_without_row_data(error)
    return f"{type(error).__name__}{place and f' at {place}'}{f': {text}' if text else ''}"


def place_of(error: BaseException) -> str:
    """Name file and line of the team's own code that an error came from; empty where it passed none."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next(
        (f"{Path(f.filename).name}:{f.lineno}" for f in frames if not f.filename.startswith(_NOT_THE_TEAMS)), ""
    )


# This package's and other packages' files; what remains is the team's.
_NOT_THE_TEAMS = (str(Path(__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))


def _text_without_row_data(error: BaseException) -> str:
    if isinstance(error, DBAPIError):
        # The first line of the driver's own message, less what it quotes; DETAIL and parameters come after it.
        return re.sub(r'"[^"]*"$', '"…"', str(error.orig).strip().partition("\n")[0])
    if isinstance(error, ValidationError):
        return f"{error.title} is not valid: {told(error)}"
    if isinstance(error, LookupError | ValueError):
        # KeyError('ada@forum.example'), invalid literal for int(): 'ada'. Python puts the value itself there.
        return ""
    try:
        return str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 - a team's own __str__ ends here
        return ""


def world_reason(error: BaseException) -> str | None:
    """Say what of the world failed, or None where the data or the handler is to blame."""
    if isinstance(error, WorldError):
        return str(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return f"the database connection was lost ({type(error.orig).__name__})"
    if isinstance(error, InterfaceError) or (isinstance(error, OperationalError) and _is_connection_trouble(error)):
        return f"the database does not answer ({type(error.orig).__name__})"
    if isinstance(error, DBAPIError) and _is_not_set_up(error):
        return (
            f"the database is not set up for this handler: {str(error.orig).strip().partition(chr(10))[0]}; run its "
            "migrations (replay: --create-tables), or grant what it needs"
        )
    return _reason_to_wait(error)


def _reason_to_wait(error: BaseException) -> str | None:
    if isinstance(error, NoFreeConnection):
        return "no database connection became free"
    if isinstance(error, DBAPIError) and _is_lock_timeout(error):
        return "another run holds rows that this one needs (where an async def uses ctx.session: make it a plain def)"
    return None


def _is_lock_timeout(error: DBAPIError) -> bool:
    """Tell a wait that took too long from `NOWAIT`, which has the same SQLSTATE and is the statement's own wish."""
    return getattr(error.orig, "sqlstate", None) == "55P03" and "lock timeout" in str(error.orig)


# SQLSTATE classes of trouble that is not the statement's: connection, resources, operator intervention, system.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_WORLD_CLASSES = ("08", "53", "57", "58")
# Of these, `statement_timeout` is the statement's own after all.
_QUERY_CANCELED = "57014"

# https://www.sqlite.org/rescode.html; the text is no guide: "no such table: disk" is a handler's mistake.
_WORLD_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


# A table or schema that is not there or may not be touched: a migration or a grant is missing, no row is to blame.
_NOT_SET_UP = ("42P01", "3F000", "42501", "28000", "28P01")


def _is_not_set_up(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return str(error.orig).startswith("no such table")
    return getattr(error.orig, "sqlstate", None) in _NOT_SET_UP


def _is_connection_trouble(error: OperationalError) -> bool:
    cause = error.orig
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_WORLD_CLASSES) and state != _QUERY_CANCELED
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code, the rest tells its kinds apart.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _WORLD_CODES
    # psycopg gives no SQLSTATE for a connection that was never made.
    return type(cause).__module__.startswith("psycopg")
