"""Handlers: what a team declares with `@handles`, and the Context that a run of one is given.

Decorating registers nothing: a decorated function is a `Handler` value that `discovery` collects and that still can be
called. Everything wrong with a declaration raises DefinitionError here, at import, naming the handler and the cure.
"""

from __future__ import annotations

import inspect
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias

from cdc_reactor.changes import Batch, Create, Delete, R, Row, Truncate, Update, columns_of
from cdc_reactor.declarations import (
    check_choice,
    check_timeout,
    check_two_parameters,
    check_wait,
    check_whole,
    first_annotation,
    label_of,
    place_of,
)
from cdc_reactor.envelope import Operation, TableId
from cdc_reactor.errors import DefinitionError, WorldError
from cdc_reactor.events import EVENT_ID, Publication, Publishable, derived_id
from cdc_reactor.messages import NO_ATTRIBUTES, Message
from cdc_reactor.publications import write

if TYPE_CHECKING:
    import logging

    from sqlalchemy.orm import Session

    from cdc_reactor.experiments import Allocations

OnPoison: TypeAlias = Literal["skip", "park", "halt"]
Kind: TypeAlias = type[Create[Any] | Update[Any] | Delete[Any] | Truncate[Any]]

_OPERATION_OF: Mapping[Any, Operation] = {
    Create: Operation.CREATE,
    Update: Operation.UPDATE,
    Delete: Operation.DELETE,
    Truncate: Operation.TRUNCATE,
}


class Cause(Protocol):
    """What a run is handling at the moment; it names the events that are published meanwhile."""

    def identity(self) -> str:
        """Name it, the same whenever it is handled again; empty where that cannot be told."""

    def trace(self) -> Mapping[str, str]:
        """Return the attributes that carry its trace on."""


class Context:
    """What a run of a handler or worker may use: a database session, events to publish, a logger, the time.

    One Context lives for one run. Nothing that it collects takes effect before the handler returned.
    """

    __slots__ = (
        "_cause",
        "_message",
        "_open_experiments",
        "_open_session",
        "_told",
        "attempt",
        "handler",
        "log",
        "now",
        "publications",
    )

    def __init__(
        self,
        *,
        handler: str,
        log: logging.LoggerAdapter[Any] | logging.Logger,
        now: datetime,
        open_session: Callable[[], Session],
        attempt: int = 1,
        message: Message | None = None,
        cause: Cause | None = None,
        open_experiments: Callable[[], Allocations] | None = None,
    ) -> None:
        self.handler = handler
        self.log = log
        #: When this run began: aware, UTC.
        self.now = now
        #: How often the message, or the first change of the batch, is now being tried; 1 for the first time.
        self.attempt = attempt
        self.publications: list[Publication] = []
        self._open_session = open_session
        self._message = message
        self._cause = cause
        self._open_experiments = open_experiments
        # How often equal events were published of one cause.
        self._told: Counter[str] = Counter()

    @property
    def session(self) -> Session:
        """The SQLAlchemy session of this run: one transaction, committed when the handler returns."""
        return self._open_session()

    @property
    def message(self) -> Message:
        """The message that a worker is given, as it was published: id, publish time, attributes, ordering key, data.

        Raises:
            RuntimeError: this is a table handler's run, which has a batch of changes and no one message.
        """
        if self._message is None:
            raise RuntimeError(f"{self.handler} handles changes of a table; ctx.message is for workers only")
        return self._message

    @property
    def experiments(self) -> Allocations:
        """Allocate users to variations of experiments; all of it is flushed before the message is acknowledged.

        Raises:
            WorldError: no client of experiments is configured; nothing is wrong with the message.
        """
        if self._open_experiments is None:
            raise WorldError(
                f"{self.handler} uses ctx.experiments, and no client is configured; name one: "
                'experiments = "package.module:client"'
            )
        return self._open_experiments()

    def publish(self, event: Publishable, *, key: str = "", topic: str = "") -> None:
        """Publish an event once the transaction is committed; `key` keeps events of one key in order.

        Without `key` it is what the event's own key field says, if it names one. A `topic` goes before the event's own.

        Raises:
            TypeError: this is no event, or it cannot be written.
            ValueError: it is larger than its topic takes.
        """
        written = write(event, who=self.handler, key=key, topic=topic)
        own_topic = "" if written.topic == event.topic else written.topic
        attributes = self._attributes(written.topic, written.key, written.data)
        self.publications.append(Publication(event, written.key, attributes, written.data, own_topic))

    def _attributes(self, topic: str, key: str, data: bytes) -> Mapping[str, str]:
        cause = self._cause
        if cause is None or not (identity := cause.identity()):
            return NO_ATTRIBUTES
        parts = (self.handler, identity, topic, key)
        event_id = derived_id(parts, data)
        repeated = self._told[event_id]
        self._told[event_id] += 1
        if repeated:
            event_id = derived_id(parts, data, repeated)
        return {EVENT_ID: event_id, **cause.trace()}


@dataclass(frozen=True, slots=True, eq=False)
class Handler(Generic[R]):
    """A function that reacts to changes of one table, and how it wants them. Made by `@handles`.

    `max_size` changes at most make a batch, `max_wait` seconds at most does the oldest wait for it. `timeout` is in
    seconds.
    """

    function: Callable[[Batch[R], Context], Awaitable[None] | None]
    row: type[R]
    name: str
    max_size: int = 100
    max_wait: float = 0.5
    operations: frozenset[Operation] = frozenset(_OPERATION_OF.values())
    when_changed: tuple[str, ...] = ()
    snapshot: bool = False
    max_attempts: int = 5
    timeout: float | None = None
    on_poison: OnPoison = "skip"
    owner: str = ""

    @property
    def table_id(self) -> TableId:
        """The table whose changes it wants."""
        return self.row.table_id

    @property
    def is_async(self) -> bool:
        """Whether it is `async def`, to be run on the event loop."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def place(self) -> str:
        """File and line of the function."""
        return place_of(self.function)

    def __call__(self, batch: Batch[R], ctx: Context) -> Awaitable[None] | None:
        """Call the function as it was written."""
        return self.function(batch, ctx)


def handles(
    row: type[R],
    *,
    name: str = "",
    max_size: int = 100,
    max_wait: float = 0.5,
    ops: Collection[Kind | Operation] = (),
    when_changed: Collection[str] = (),
    snapshot: bool = False,
    max_attempts: int = 5,
    timeout: float | None = None,
    on_poison: OnPoison = "skip",
    owner: str = "",
) -> Callable[[Callable[[Batch[R], Context], Awaitable[None] | None]], Handler[R]]:
    """Declare that a function reacts to the changes of a Row's table.

    `ops` limits the kinds of change (`ops=(Create, Delete)`; all by default), `when_changed` lets updates through
    only if one of these columns changed, `snapshot=True` asks for the rows of snapshots too, as Create. After
    `max_attempts` failures a change is poison: `on_poison` "skip" puts it among the dead letters, "park" also all
    later changes of its row, "halt" stops the handler and keeps the change.

    Raises:
        DefinitionError: an option, the Row or the function's parameters are wrong.
    """
    if not (isinstance(row, type) and issubclass(row, Row)):
        # Also `@handles` without parentheses, which would else put a function where discovery looks for a Handler.
        raise DefinitionError(f"@handles takes a Row class, not {row!r}: write @handles(User)")

    def declare(function: Callable[[Batch[R], Context], Awaitable[None] | None]) -> Handler[R]:
        label = label_of(function, "@handles")
        _check_row(label, row)
        check_whole(label, "max_size", max_size)
        check_whole(label, "max_attempts", max_attempts)
        check_wait(label, "max_wait", max_wait)
        check_timeout(label, timeout)
        check_choice(label, "on_poison", on_poison, typing.get_args(OnPoison))
        _check_parameters(label, function, row)
        return Handler(
            function=function,
            row=row,
            name=name or function.__name__,
            max_size=max_size,
            max_wait=max_wait,
            operations=_operations(label, ops),
            when_changed=_columns(label, row, when_changed),
            snapshot=snapshot,
            max_attempts=max_attempts,
            timeout=timeout,
            on_poison=on_poison,
            owner=owner,
        )

    return declare


def _check_row(label: str, row: type[Row]) -> None:
    if not hasattr(row, "table_id"):
        raise DefinitionError(f'{label}: {row.__name__} names no table: class {row.__name__}(Row, table="public.…")')


def _check_parameters(label: str, function: Callable[..., Any], row: type[Row]) -> None:
    check_two_parameters(label, function, f"a handler takes (batch: Batch[{row.__name__}], ctx: Context)")
    annotation = first_annotation(function)
    wanted = next(iter(typing.get_args(annotation)), None) if typing.get_origin(annotation) is Batch else None
    # Batch[Any] and Batch[Row] take any row.
    if isinstance(wanted, type) and issubclass(wanted, Row) and not issubclass(row, wanted):
        raise DefinitionError(f"{label}: it handles {row.__name__} but its batch is annotated Batch[{wanted.__name__}]")


def _operations(label: str, ops: Collection[Any]) -> frozenset[Operation]:
    if not ops:
        return frozenset(_OPERATION_OF.values())
    chosen = set()
    for op in [ops] if isinstance(ops, type | Operation | str) else ops:
        operation: Any = _OPERATION_OF.get(op, op) if isinstance(op, type | str) else op
        if operation not in _OPERATION_OF.values():
            raise DefinitionError(f"{label}: ops holds {op!r}; it takes Create, Update, Delete and Truncate")
        chosen.add(operation)
    return frozenset(chosen)


def _columns(label: str, row: type[Row], names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise DefinitionError(f'{label}: when_changed={names!r} must be a tuple of columns, as ("{names}",)')
    known = {*row.model_fields, *columns_of(row)}
    for column in names:
        if column not in known:
            near = get_close_matches(str(column), sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"
            raise DefinitionError(f"{label}: when_changed names {column!r}, which is no field of {row.__name__}{hint}")
    return tuple(names)
