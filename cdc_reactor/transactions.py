"""One run's Context, and the end of it: experiments flushed, then one database transaction committed, or nothing.

Neighbours: `execution` and `worker_execution` open one for each run; `handlers.Context` is what teams see of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, TypeAlias

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from cdc_reactor.errors import WorldError
from cdc_reactor.experiments import Allocations, ExperimentClient
from cdc_reactor.handlers import Cause, Context
from cdc_reactor.messages import Message

if TYPE_CHECKING:
    from cdc_reactor.notification_delivery import NotificationDelivery

_log = logging.getLogger("cdc_reactor")

Clock: TypeAlias = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Resources:
    """What runs are given from outside; shared by all of them, and thread-safe. See Executor."""

    engine: Engine | None = None
    commit: bool = True
    clock: Clock = utc_now
    experiments: ExperimentClient | None = None
    delivery: NotificationDelivery | None = None


# How long a run on the event loop waits for a lock: whoever holds it may be a run that cannot go on until we give up.
_LOOP_LOCK_TIMEOUT_MS = 1_000


class Transaction:
    """One run: `ctx` for the handler, then `finish`, and `close` in any case (`with` does that).

    The session is opened where `ctx.session` is first used. It may be used in one thread after another, never in two at
    once; so may this. Where the function runs `on_loop`, as a task among others, it waits for locks a moment only.
    """

    __slots__ = ("_allocations", "_is_on_loop", "_resources", "_session", "ctx")

    def __init__(
        self,
        resources: Resources,
        *,
        handler: str,
        about: Mapping[str, str],
        attempt: int,
        cause: Cause,
        message: Message | None = None,
        on_loop: bool = False,
    ) -> None:
        self._resources = resources
        self._is_on_loop = on_loop
        self._session: Session | None = None
        self._allocations: Allocations | None = None
        self.ctx = Context(
            handler=handler,
            log=logging.LoggerAdapter(_log, {"handler": handler, **about}),
            now=resources.clock(),
            open_session=self._open_session,
            attempt=attempt,
            message=message,
            cause=cause,
            open_experiments=None if resources.experiments is None else self._open_experiments,
        )

    @property
    def is_used(self) -> bool:
        """Whether there is anything to finish or to give back."""
        return self._session is not None or self._allocations is not None

    @property
    def is_open(self) -> bool:
        """Whether a session is open."""
        return self._session is not None

    def finish(self) -> None:
        """Flush what was allocated and commit; in a dry run only see whether the database takes it."""
        if self._allocations is not None and self._resources.commit:
            self._allocations.flush()
        if self._session is None:
            return
        if self._resources.commit:
            self._session.commit()
        else:
            self._session.flush()
            self._session.rollback()

    def close(self) -> None:
        """Roll back what was not finished, and give the connection back."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_session(self) -> Session:
        if self._session is None:
            if self._resources.engine is None:
                raise WorldError(
                    f"{self.ctx.handler} uses ctx.session and no database is given; add --database-url URL"
                )
            self._session = session = Session(self._resources.engine)
            if self._is_on_loop and self._resources.engine.dialect.name == "postgresql":
                # https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT
                session.execute(text(f"SET LOCAL lock_timeout = {_LOOP_LOCK_TIMEOUT_MS}"))
        return self._session

    def _open_experiments(self) -> Allocations:
        if self._allocations is None:
            assert self._resources.experiments is not None, "offered only where there is a client"
            self._allocations = self._resources.experiments.begin()
        return self._allocations
