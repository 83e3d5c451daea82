"""Handlers: what a team declares with `@handles`, and the Context that a run of one is given.

Decorating registers nothing: a decorated function is a `Handler` value that `discovery` collects and that still can be
called. Everything wrong with a declaration raises DefinitionError here, at import, naming the handler and the cure.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias

from cdc_reactor.changes import Batch, Create, Delete, R, Row, Truncate, Update, columns_of
from cdc_reactor.envelope import Operation, TableId
from cdc_reactor.errors import DefinitionError
from cdc_reactor.events import Event, Publication, encode

if TYPE_CHECKING:
    import logging

    from sqlalchemy.orm import Session

#: What Pub/Sub takes of one message and of its ordering key, less what wraps the message in its request.
#: https://cloud.google.com/pubsub/quotas#resource_limits
MAX_EVENT_BYTES = 10_000_000 - 1_000
MAX_KEY_BYTES = 1_024

OnPoison: TypeAlias = Literal["skip", "park", "halt"]
Kind: TypeAlias = type[Create[Any] | Update[Any] | Delete[Any] | Truncate[Any]]

_OPERATION_OF: Mapping[Any, Operation] = {
    Create: Operation.CREATE,
    Update: Operation.UPDATE,
    Delete: Operation.DELETE,
    Truncate: Operation.TRUNCATE,
}


class Context:
    """What a run of a handler may use: a database session, events to publish, a logger, the time.

    One Context lives for one run. Nothing that it collects takes effect before the handler returned.
    """

    __slots__ = ("_open_session", "attempt", "handler", "log", "now", "publications")

    def __init__(
        self,
        *,
        handler: str,
        log: logging.LoggerAdapter[Any] | logging.Logger,
        now: datetime,
        open_session: Callable[[], Session],
        attempt: int = 1,
    ) -> None:
        self.handler = handler
        self.log = log
        #: When this run began: aware, UTC.
        self.now = now
        #: How often the first change of the batch is now being tried; 1 for the first time.
        self.attempt = attempt
        self.publications: list[Publication] = []
        self._open_session = open_session

    @property
    def session(self) -> Session:
        """The SQLAlchemy session of this run: one transaction, committed when the handler returns."""
        return self._open_session()

    def publish(self, event: Event, *, key: str = "") -> None:
        """Publish an event once the transaction is committed; `key` keeps events of one key in order."""
        if not isinstance(event, Event):
            raise TypeError(f"{self.handler} publishes a {type(event).__name__}; declare it as a class of Event")
        if not event.topic:
            raise TypeError(f'{type(event).__name__} has no topic: class {type(event).__name__}(Event, topic="…")')
        try:
            # Found out after the commit, it would be too late: the event would be lost, or the change applied twice.
            size_bytes, key_bytes = len(encode(event)), len(key.encode())
        except AttributeError:
            raise TypeError(f"{type(event).__name__}: an ordering key is text, not {type(key).__name__}") from None
        except ValueError as error:
            raise TypeError(f"{type(event).__name__} cannot be written as JSON: {error}") from error
        if size_bytes > MAX_EVENT_BYTES or key_bytes > MAX_KEY_BYTES:
            raise ValueError(
                f"{type(event).__name__} has {size_bytes:,} bytes and a key of {key_bytes:,}; "
                f"topic {event.topic} takes {MAX_EVENT_BYTES:,} and {MAX_KEY_BYTES:,}"
            )
        self.publications.append(Publication(event, key))


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
        assert inspect.isfunction(self.function), "@handles takes plain functions only"
        code = self.function.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

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
        label = _label(function)
        _check_row(label, row)
        _check_numbers(label, max_size=max_size, max_attempts=max_attempts, max_wait=max_wait, timeout=timeout)
        if on_poison not in typing.get_args(OnPoison):
            raise DefinitionError(f'{label}: on_poison={on_poison!r} must be "skip", "park" or "halt"')
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


def _label(function: Any) -> str:
    if not inspect.isfunction(function):
        raise DefinitionError(f"@handles decorates a function (def or async def), not {function!r}")
    label = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno} {function.__name__}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"{label}: a handler with `yield` in it would never run; publish by ctx.publish")
    return label


def _check_row(label: str, row: type[Row]) -> None:
    if not hasattr(row, "table_id"):
        raise DefinitionError(f'{label}: {row.__name__} names no table: class {row.__name__}(Row, table="public.…")')


def _check_numbers(label: str, *, max_size: int, max_attempts: int, max_wait: float, timeout: float | None) -> None:
    for option, value, lowest in (("max_size", max_size, 1), ("max_attempts", max_attempts, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise DefinitionError(f"{label}: {option}={value!r} must be a whole number of at least {lowest}")
    if not _is_seconds(max_wait):
        raise DefinitionError(f"{label}: max_wait={max_wait!r} must be seconds, zero or more")
    if timeout is not None and (not _is_seconds(timeout) or timeout == 0):
        raise DefinitionError(f"{label}: timeout={timeout!r} must be seconds above zero, or None")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf


def _check_parameters(label: str, function: Callable[..., Any], row: type[Row]) -> None:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise DefinitionError(
            f"{label}: a handler takes (batch: Batch[{row.__name__}], ctx: Context): {error}"
        ) from None
    annotation = next(iter(inspect.signature(function).parameters.values())).annotation
    if isinstance(annotation, str):
        annotation = _resolve(annotation, function)
    wanted = next(iter(typing.get_args(annotation)), None) if typing.get_origin(annotation) is Batch else None
    # Batch[Any] and Batch[Row] take any row.
    if isinstance(wanted, type) and issubclass(wanted, Row) and not issubclass(row, wanted):
        raise DefinitionError(f"{label}: it handles {row.__name__} but its batch is annotated Batch[{wanted.__name__}]")


def _resolve(annotation: str, function: Callable[..., Any]) -> Any:
    try:
        return eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307 - the module's own annotation
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only; they check it
        return None


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
