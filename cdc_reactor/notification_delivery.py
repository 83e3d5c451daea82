"""Delivery of what notification workers return: each dedupe key once within a window, and none lost.

`Executor` calls `deliver` inside the run's transaction, right after the worker's function returned. What is left out is
only what *another* message (or worker) has had sent: a message that comes again, because nobody confirmed that its
notification went out, has it sent again. So what is remembered of a key is its cause, not a mere "sent".

With a database that is a row of `cdc_reactor_notifications`, written in the run's own transaction: it is undone with a
failed run, and of two processes that race for a key the second waits for the first one's commit. Without one it is kept
in this process, for as many keys as fit. What was sent is never kept, and neither are texts or recipients.

Neighbours: `notifications` is the model, `execution` the caller; brokers or sinks carry what is delivered.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from threading import Condition
from time import monotonic
from typing import Any, NamedTuple, Protocol, TypeAlias

from msgspec import Struct
from sqlalchemy import Column, CursorResult, DateTime, Insert, MetaData, String, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cdc_reactor.causes import MessageCause
from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.handlers import Context
from cdc_reactor.notifications import Notification

#: Takes notifications for good, in a run's thread; what it raises fails the run, which then sends them again.
NotificationSink: TypeAlias = Callable[[Sequence[Notification]], None]

#: What `create_tables` makes, or a migration of yours.
metadata = MetaData()

# With `expires_at` in the row, whoever has another window need not know with which one it was sent.
_sent = Table(
    "cdc_reactor_notifications",
    metadata,
    Column("dedupe_key", String(255), primary_key=True),
    Column("cause", String(255), nullable=False),
    Column("sent_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False, index=True),
)

_LONGEST = 255
_LONGEST_WINDOW = 10 * 365 * 86_400.0
# How many expired rows a run deletes at most, and how long after the last time it looks for some.
_PRUNED_AT_ONCE = 500
_BETWEEN_PRUNINGS = timedelta(minutes=1)


class NotificationDelivery(Protocol):
    """Where an Executor takes what notification workers return; thread-safe."""

    def deliver(self, notifications: Sequence[Notification], ctx: Context) -> Callable[[], None] | None:
        """Publish notifications by `ctx`, or return what sends them, to be called once the transaction is committed.

        Whatever this or what it returns raises fails the run. Call it in the thread that goes on to commit: another
        run may be waiting for that commit.
        """


class Delivery:
    """Publishes notifications to a topic, or hands them to a sink, each dedupe key once within `window` seconds.

    `in_database` says whether runs have a database to remember in (PostgreSQL or SQLite, with `metadata`'s table).
    Without one the last `remembered` keys of this process are known, about 450 bytes each: another process, a restart
    or more keys within the window mean a duplicate, never a loss.
    """

    def __init__(
        self,
        *,
        topic: str,
        window: float = 86_400.0,
        sink: NotificationSink | None = None,
        in_database: bool = False,
        remembered: int = 100_000,
    ) -> None:
        if not 0 < window <= _LONGEST_WINDOW:
            raise UsageError(
                f"the window of notifications is {window!r}; it must be seconds above zero, ten years at most"
            )
        self._topic = topic
        self._window = timedelta(seconds=window)
        self._sink = sink
        self._memory: _Memory = _InDatabase() if in_database else _InProcess(remembered)

    def deliver(self, notifications: Sequence[Notification], ctx: Context) -> Callable[[], None] | None:
        """Leave out what another message has had sent; publish the rest, or return what hands it to the sink."""
        firsts = _first_of_each_key(notifications)
        keys = {n.dedupe_key: _storable(n.dedupe_key) for n in firsts if n.dedupe_key}
        claim = _Claim(_cause(ctx), ctx.now, ctx.now + self._window)
        ours = self._memory.take(keys.values(), claim, ctx) if keys else frozenset()
        due = [n for n in firsts if not n.dedupe_key or keys[n.dedupe_key] in ours]
        if left_out := len(notifications) - len(due):
            ctx.log.debug("%d of %d notifications left out: sent already", left_out, len(notifications))
        if self._sink is None:
            for notification in due:
                ctx.publish(notification, topic=self._topic)
        if not due or (self._sink is None and isinstance(self._memory, _InDatabase)):
            return None
        return self._after_commit(due, ours, claim, ctx)

    def _after_commit(
        self, due: Sequence[Notification], ours: AbstractSet[str], claim: _Claim, ctx: Context
    ) -> Callable[[], None]:
        sink, memory = self._sink, self._memory
        let_go = memory.release(ours, claim, ctx) if sink is not None and ours else None

        def finish() -> None:
            if sink is not None:
                try:
                    sink(due)
                except BaseException:
                    # Nobody was told: another message with the key must not be left out because of this one.
                    if let_go is not None:
                        let_go()
                    raise
            memory.confirm(ours, claim)

        return finish


def _first_of_each_key(notifications: Sequence[Notification]) -> list[Notification]:
    seen: set[str] = set()
    firsts = []
    for notification in notifications:
        if (key := notification.dedupe_key) not in seen:
            firsts.append(notification)
        if key:
            seen.add(key)
    return firsts


def _cause(ctx: Context) -> str:
    """Name what is being handled, by whom: the same when it comes again, another for every other message."""
    # A message without any id is taken for the same as its like: sent twice rather than not at all.
    identity = MessageCause(ctx.message).identity() or hashlib.sha256(ctx.message.data).hexdigest()
    return _storable(f"{ctx.handler}/{identity}")


def _storable(text: str) -> str:
    """Return a text as columns take it: over 255 characters, or with a NUL in it, "sha256:" and its digest in hex."""
    if len(text) <= _LONGEST and "\0" not in text:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# ── what was sent ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Claim(NamedTuple):
    """Who wants keys, from when until when."""

    cause: str
    sent_at: datetime
    expires_at: datetime


class _Memory(Protocol):
    def take(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> AbstractSet[str]:
        """Return those keys that nobody else has within the window; they are now this cause's."""

    def confirm(self, keys: Iterable[str], claim: _Claim) -> None:
        """Note that the run has committed, and its sink has taken what it was given."""

    def release(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> Callable[[], None]:
        """Return what gives the keys back after the commit, where the sink refused; it raises nothing."""


class _InDatabase:
    """Rows in the run's own transaction, which confirms or undoes them; thread-safe."""

    def __init__(self) -> None:
        self._pruned_at: datetime | None = None

    def take(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> AbstractSet[str]:
        # In one order for all: two runs with the same keys wait for each other, and not in a circle.
        rows = [{"dedupe_key": key, **claim._asdict()} for key in sorted(set(keys))]
        session = ctx.session
        ours = frozenset(session.execute(_upsert(session.get_bind().dialect.name), rows).scalars())
        self._prune(session, claim.sent_at)
        return ours

    def confirm(self, keys: Iterable[str], claim: _Claim) -> None:
        pass

    def release(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> Callable[[], None]:
        bind = ctx.session.get_bind()
        is_ours = _sent.c.dedupe_key.in_(list(keys)) & (_sent.c.cause == claim.cause)

        def let_go() -> None:
            try:
                with Session(bind) as session:
                    session.execute(delete(_sent).where(is_ours))
                    session.commit()
            except SQLAlchemyError as error:
                ctx.log.warning("keys of notifications that were not sent stay taken (%s)", type(error).__name__)

        return let_go

    def _prune(self, session: Session, now: datetime) -> None:
        """Delete some of the expired rows now and then, and at every run while there are more of them."""
        if self._pruned_at is not None and now - self._pruned_at < _BETWEEN_PRUNINGS:
            return
        # Rows that others hold are left alone, so that this never waits; SQLite has one writer and no such words.
        expired = select(_sent.c.dedupe_key).where(_sent.c.expires_at <= now).limit(_PRUNED_AT_ONCE)
        found = session.execute(
            delete(_sent).where(_sent.c.dedupe_key.in_(expired.with_for_update(skip_locked=True))),
            execution_options={"synchronize_session": False},
        )
        assert isinstance(found, CursorResult), "a DELETE counts its rows"
        self._pruned_at = now if found.rowcount < _PRUNED_AT_ONCE else None


def _upsert(dialect: str) -> Any:
    """Write the statement that takes a key where it is free, expired or the same cause's, and returns it if so.

    PostgreSQL lets it wait for a transaction that has just taken the key, and then judge by the row that it committed:
    https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
    """
    statement: postgresql.Insert | sqlite.Insert
    match dialect:
        case "postgresql":
            statement = postgresql.insert(_sent)
        case "sqlite":
            statement = sqlite.insert(_sent)
        case _:
            raise WorldError(
                f"notifications with a dedupe_key are remembered in PostgreSQL or SQLite, not in {dialect}; give the "
                "daemon one of these"
            )
    new = statement.excluded
    upsert: Insert = statement.on_conflict_do_update(
        index_elements=[_sent.c.dedupe_key],
        set_={"cause": new.cause, "sent_at": new.sent_at, "expires_at": new.expires_at},
        where=(_sent.c.cause == new.cause) | (_sent.c.expires_at <= new.sent_at),
    )
    return upsert.returning(_sent.c.dedupe_key)


class _Taken(Struct):
    """What is known of one key; `taken_at` is seconds of the monotonic clock."""

    claim: _Claim
    taken_at: float
    is_confirmed: bool = False


class _InProcess:
    """The last keys of this process; thread-safe.

    Nobody says when a run has failed, so a key is sent only once it is confirmed. Until then others wait for it, as
    they would for a database's row, but `patience` seconds at most: then they send it themselves.
    """

    def __init__(self, limit: int, *, patience: float = 1.0) -> None:
        self._limit = limit
        self._patience = patience
        self._taken: OrderedDict[str, _Taken] = OrderedDict()
        self._confirmed = Condition()

    def take(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> AbstractSet[str]:  # noqa: ARG002 - as _Memory
        wanted = list(keys)
        with self._confirmed:
            # All at once or none: whoever waits holds nothing that another waits for.
            while (patience := max(self._patience_with(key, claim) for key in wanted)) > 0:
                self._confirmed.wait(patience)
            ours = frozenset(key for key in wanted if not self._is_sent(key, claim))
            now = monotonic()
            for key in ours:
                # What a message had sent before stays sent, even if this run of it fails.
                self._taken[key] = _Taken(claim, now, is_confirmed=self._is_known(key, claim))
                self._taken.move_to_end(key)
            self._forget(claim.sent_at)
            return ours

    def confirm(self, keys: Iterable[str], claim: _Claim) -> None:
        with self._confirmed:
            for key in keys:
                taken = self._taken.get(key)
                if taken is not None and taken.claim.cause == claim.cause:
                    taken.is_confirmed = True
            self._confirmed.notify_all()

    def release(self, keys: Iterable[str], claim: _Claim, ctx: Context) -> Callable[[], None]:  # noqa: ARG002 - as _Memory
        # What is not confirmed is nobody's.
        return lambda: None

    def _patience_with(self, key: str, claim: _Claim) -> float:
        """Tell for how many seconds another run is to be waited for, which may yet confirm this key."""
        taken = self._others(key, claim)
        return 0.0 if taken is None or taken.is_confirmed else taken.taken_at + self._patience - monotonic()

    def _is_sent(self, key: str, claim: _Claim) -> bool:
        taken = self._others(key, claim)
        return taken is not None and taken.is_confirmed

    def _is_known(self, key: str, claim: _Claim) -> bool:
        taken = self._taken.get(key)
        return taken is not None and taken.is_confirmed and taken.claim.cause == claim.cause

    def _others(self, key: str, claim: _Claim) -> _Taken | None:
        taken = self._taken.get(key)
        if taken is None or taken.claim.cause == claim.cause or taken.claim.expires_at <= claim.sent_at:
            return None
        return taken

    def _forget(self, now: datetime) -> None:
        """Drop what is expired, oldest first, and what is too much."""
        while self._taken:
            oldest = next(iter(self._taken.values()))
            if len(self._taken) <= self._limit and oldest.claim.expires_at > now:
                return
            self._taken.popitem(last=False)
