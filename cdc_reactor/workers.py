"""Workers: functions that react to the messages of one subscription, declared with `@subscribes` or `@notifies`.

Decorating registers nothing: a decorated function is a `Worker` value that `discovery` collects and that still can be
called. Its type parameter is what the function is given, so that type checkers hold the annotation to the event type.
Everything wrong with a declaration raises DefinitionError here, at import, naming the worker and the cure.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeAlias, overload

from typing_extensions import TypedDict, TypeVar, Unpack

from cdc_reactor.declarations import (
    check_choice,
    check_options,
    check_text,
    check_timeout,
    check_truth,
    check_two_parameters,
    check_whole,
    first_annotation,
    label_of,
    place_of,
)
from cdc_reactor.errors import DefinitionError
from cdc_reactor.events import Event, EventType, ProtobufEvent, ProtobufMessage, check_topic, event_type
from cdc_reactor.handlers import Context, OnPoison
from cdc_reactor.messages import Message
from cdc_reactor.notifications import Notification

#: The group of workers that name none.
DEFAULT_GROUP = "default"

# https://cloud.google.com/pubsub/docs/create-subscription#resource_names
_SUBSCRIPTION = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_GROUP = re.compile(r"[a-z0-9][a-z0-9\-]{0,62}")

T = TypeVar("T", default=Any)
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=ProtobufMessage)

#: What a worker's function looks like.
WorkerFunction: TypeAlias = Callable[[T, Context], Awaitable[None] | None]
_Told: TypeAlias = Notification | Sequence[Notification] | None
#: What a notification worker's function looks like.
NotifierFunction: TypeAlias = Callable[[T, Context], Awaitable[_Told] | _Told]


class WorkerKind(StrEnum):
    """What becomes of what a worker returns."""

    #: Nothing: it returns nothing.
    TYPED = "typed"
    #: Notifications, which are sent.
    NOTIFICATION = "notification"
    #: It is given the untouched message.
    RAW = "raw"


class WorkerOptions(TypedDict, total=False):
    """The options of a worker that have defaults; the same for every kind of it."""

    #: What it is called in logs and metrics; the function's name, unless given.
    name: str
    #: How many messages are in its hands at a time; 20.
    max_messages: int
    #: After how many failures a message is poison; 5.
    max_attempts: int
    #: Seconds that one run may take; None for any.
    timeout: float | None
    #: The topic that poison goes to; unset, the daemon's.
    dead_letter: str
    #: Poison goes to the dead letters ("skip"), with all later messages of its ordering key ("park"), or stops the
    #: worker ("halt"); "skip".
    on_poison: OnPoison
    #: Which processes run it: `cdc-reactor run --group NAME`; "default".
    group: str
    #: Whether only a process that names its group runs it; False.
    dedicated: bool
    #: Whether messages with one ordering key come in the order of their publication; True.
    ordered: bool
    #: Who is asked about it.
    owner: str


@dataclass(frozen=True, slots=True, eq=False)
class Worker(Generic[T]):
    """A function that reacts to messages of one subscription, and how it wants them. Made by `@subscribes`."""

    function: Callable[[T, Context], Any]
    event_type: EventType[T]
    subscription: str
    name: str
    kind: WorkerKind = WorkerKind.TYPED
    max_messages: int = 20
    max_attempts: int = 5
    timeout: float | None = None
    dead_letter: str = ""
    on_poison: OnPoison = "skip"
    group: str = DEFAULT_GROUP
    dedicated: bool = False
    ordered: bool = True
    owner: str = ""

    @property
    def topic(self) -> str:
        """The topic that its subscription is of."""
        return self.event_type.topic

    @property
    def max_size(self) -> int:
        """How many messages it is given at a time: one."""
        return 1

    @property
    def max_wait(self) -> float:
        """How long a message waits for others: not at all."""
        return 0.0

    @property
    def is_async(self) -> bool:
        """Whether it is `async def`, to be run on the event loop."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def place(self) -> str:
        """File and line of the function."""
        return place_of(self.function)

    def __call__(self, event: T, ctx: Context) -> Any:
        """Call the function as it was written."""
        return self.function(event, ctx)


@overload
def subscribes(
    event: type[E],
    *,
    subscription: str,
    parse: Callable[[Message], E] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[WorkerFunction[E]], Worker[E]]: ...
@overload
def subscribes(
    event: ProtobufEvent[M],
    *,
    subscription: str,
    parse: Callable[[Message], M] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[WorkerFunction[M]], Worker[M]]: ...
@overload
def subscribes(
    event: type[Message], *, subscription: str, topic: str, **options: Unpack[WorkerOptions]
) -> Callable[[WorkerFunction[Message]], Worker[Message]]: ...
@overload
def subscribes(
    event: type[M],
    *,
    subscription: str,
    topic: str,
    parse: Callable[[Message], M] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[WorkerFunction[M]], Worker[M]]: ...
@overload
def subscribes(
    event: type[T],
    *,
    subscription: str,
    topic: str,
    parse: Callable[[Message], T],
    **options: Unpack[WorkerOptions],
) -> Callable[[WorkerFunction[T]], Worker[T]]: ...
def subscribes(
    event: Any,
    *,
    subscription: str = "",
    topic: str = "",
    parse: Callable[[Message], Any] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[WorkerFunction[Any]], Worker[Any]]:
    """Declare that a function reacts to the messages of a subscription.

    `event` says what it is given: an Event class, a ProtobufEvent, a Protobuf class with its `topic`, `Message` with a
    `topic` for the untouched message, or any other class with a `topic` and a `parse` that makes one of a Message. What
    cannot be read goes to the dead letters at once. WorkerOptions says what else can be given.

    Raises:
        DefinitionError: an option, the event type or the function's parameters are wrong.
    """
    kind = WorkerKind.RAW if event is Message and parse is None else WorkerKind.TYPED
    return _declare("@subscribes", kind, event, subscription, topic=topic, parse=parse, options=options)


@overload
def notifies(
    event: type[E],
    *,
    subscription: str,
    parse: Callable[[Message], E] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[NotifierFunction[E]], Worker[E]]: ...
@overload
def notifies(
    event: ProtobufEvent[M],
    *,
    subscription: str,
    parse: Callable[[Message], M] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[NotifierFunction[M]], Worker[M]]: ...
@overload
def notifies(
    event: type[M],
    *,
    subscription: str,
    topic: str,
    parse: Callable[[Message], M] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[NotifierFunction[M]], Worker[M]]: ...
@overload
def notifies(
    event: type[T],
    *,
    subscription: str,
    topic: str,
    parse: Callable[[Message], T],
    **options: Unpack[WorkerOptions],
) -> Callable[[NotifierFunction[T]], Worker[T]]: ...
def notifies(
    event: Any,
    *,
    subscription: str = "",
    topic: str = "",
    parse: Callable[[Message], Any] | None = None,
    **options: Unpack[WorkerOptions],
) -> Callable[[NotifierFunction[Any]], Worker[Any]]:
    """Declare that a function returns what people are to be told of a message: notifications, one, or None.

    They are sent when the run's transaction is committed, and before the message is acknowledged. Everything else is as
    with `subscribes`.

    Raises:
        DefinitionError: an option, the event type or the function's parameters are wrong.
    """
    kind = WorkerKind.NOTIFICATION
    return _declare("@notifies", kind, event, subscription, topic=topic, parse=parse, options=options)


def _declare(
    decorator: str,
    kind: WorkerKind,
    event: Any,
    subscription: str,
    *,
    topic: str,
    parse: Callable[[Message], Any] | None,
    options: WorkerOptions,
) -> Callable[[Callable[[Any, Context], Any]], Worker[Any]]:
    if inspect.isfunction(event):
        raise DefinitionError(f"{decorator} takes what its function is given: {decorator}(PostUpvoted, …)")

    def declare(function: Callable[[Any, Context], Any]) -> Worker[Any]:
        label = label_of(function, decorator)
        _check_options(label, subscription, options)
        kind_of_event = event_type(event, topic=topic, parse=parse, label=label)
        _check_parameters(label, function, kind_of_event)
        given: WorkerOptions = {"name": function.__name__, **options}
        return Worker(function, kind_of_event, subscription, kind=kind, **given)

    return declare


def _check_options(label: str, subscription: str, options: WorkerOptions) -> None:
    check_options(label, options, ("subscription", "topic", "parse", *WorkerOptions.__annotations__))
    if subscription == "":
        raise DefinitionError(f'{label}: name whose messages it wants: subscription="…"')
    if not isinstance(subscription, str) or not _SUBSCRIPTION.fullmatch(subscription):
        raise DefinitionError(
            f"{label}: subscription={subscription!r} is no legal Pub/Sub name: a letter, then 2 to 254 letters, digits "
            "or any of -._~+%, not beginning with goog"
        )
    for option in ("name", "owner", "group"):
        check_text(label, option, options.get(option, "x"))
    for option in ("dedicated", "ordered"):
        check_truth(label, option, options.get(option, False))
    for option in ("max_messages", "max_attempts"):
        check_whole(label, option, options.get(option, 1))
    check_timeout(label, options.get("timeout"))
    check_choice(label, "on_poison", options.get("on_poison", "skip"), typing.get_args(OnPoison))
    if dead_letter := options.get("dead_letter"):
        check_topic(f"{label}: dead_letter", dead_letter)
    if not _GROUP.fullmatch(options.get("group", DEFAULT_GROUP)):
        raise DefinitionError(
            f"{label}: group={options.get('group')!r} must be small letters, digits and hyphens, 63 at most"
        )
    if options.get("dedicated") and options.get("group", DEFAULT_GROUP) == DEFAULT_GROUP:
        raise DefinitionError(f'{label}: dedicated=True needs a group that a process can name: group="…"')


def _check_parameters(label: str, function: Callable[..., Any], kind: EventType[Any]) -> None:
    check_two_parameters(label, function, f"a worker takes (event: {kind.name}, ctx: Context)")
    annotation = first_annotation(function)
    # What is no class (a union, Any) is for type checkers to judge.
    if isinstance(annotation, type) and annotation not in (inspect.Parameter.empty, Any):
        try:
            fits = issubclass(kind.model, annotation)
        except TypeError:  # a protocol that can be asked for its members only
            return
        if not fits:
            raise DefinitionError(
                f"{label}: its messages are {kind.name}, but its first parameter is annotated {annotation.__name__}"
            )
