"""The text of a new worker, and of a test that hands it one message.

Pure: what is known of the event goes in as an `EventSource`, `WorkerSources` come out. `event_scaffold` writes the
event itself where none is declared yet, `cli_new` looks for it and writes the files. What is generated passes ruff,
mypy strict and its own test as it stands; it only logs ids.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cdc_reactor.errors import DefinitionError, UsageError
from cdc_reactor.event_scaffold import (
    MAX_NAME,
    NewEvent,
    homes_of,
    is_module_name,
    sample_event,
    topic_words,
    write_event,
)
from cdc_reactor.events import Event, EventType, check_topic
from cdc_reactor.sample_values import NoSample, Sample, sample_model
from cdc_reactor.source_text import LINE_LENGTH, call, docstring, join, percent, quote, write_imports

_MAX_IDS = 4
_MAX_SUBSCRIPTION = 90  # it stands in one line
_MAX_TEST_NAME = 70  # so does it, with its parameter
# What the generated modules call something else.
_TAKEN = frozenset(("subscribes", "notifies", "expect_acked", "event", "message", "ctx"))


@dataclass(frozen=True, slots=True)
class EventSource:
    """What a worker is given: how that is written, where it comes from, and how a test makes one.

    `given` is what `@subscribes` takes and `annotation` what the function is annotated with. `declaration` are the
    lines that declare it in the worker's own module, if it is not declared elsewhere. Without a `sample` nobody could
    guess one.
    """

    topic: str
    given: str
    annotation: str
    homes: Mapping[str, str]
    sample: Sample | None
    ids: tuple[str, ...] = ()
    declaration: tuple[str, ...] = ()
    #: Whether `@subscribes` must be told the topic, since what it takes has none.
    needs_topic: bool = False


@dataclass(frozen=True, slots=True)
class NewWorker:
    """A worker to be written; `module` is where, as it is imported, and `first_party` are the project's packages."""

    name: str
    subscription: str
    module: str
    first_party: frozenset[str] = field(default_factory=frozenset)
    is_async: bool = False
    notifies: bool = False


@dataclass(frozen=True, slots=True)
class WorkerSources:
    """What was written: the text of the module and of its test."""

    worker: str
    test: str


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def default_name(topic: str) -> str:
    """Name a worker for its topic: `post.upvoted.v1` → `on_post_upvoted`."""
    return f"on_{topic_words(topic)}"


def check_name(name: str) -> None:
    """Raise UsageError where no function, or no module that discovery looks into, may be called so."""
    if keyword.iskeyword(name) or hasattr(builtins, name):
        raise UsageError(f"--name {name}: it is a word of Python; choose another, as add_reputation")
    if name != name.lower() or not is_module_name(name) or name in _TAKEN:
        raise UsageError(
            f"--name {name}: a worker and its module are named in small letters, digits and underscores, and not as "
            "tests are; choose another, as add_reputation"
        )
    if len(name) > MAX_NAME:
        raise UsageError(f"--name {name}: it has more than {MAX_NAME} characters; choose a shorter one")


def default_subscription(topic: str, name: str) -> str:
    """Name a subscription: the topic's words, then the worker's, unless those say the topic's already."""
    of_topic = topic_words(topic)
    return (name if of_topic in name else f"{of_topic}_{name}").replace("_", "-")


def check_subscription(subscription: str) -> None:
    """Raise UsageError where Pub/Sub has no such subscription."""
    try:
        # Pub/Sub's names of topics and of subscriptions have the same rule.
        # https://cloud.google.com/pubsub/docs/create-subscription#resource_names
        check_topic("", subscription)
    except DefinitionError:
        raise UsageError(
            f"--subscription {subscription}: it is no legal Pub/Sub name: a letter, then 2 to 254 letters, digits or "
            "any of -._~+%, not beginning with goog"
        ) from None
    if len(subscription) > _MAX_SUBSCRIPTION:
        raise UsageError(
            f"--subscription {subscription}: it has more than {_MAX_SUBSCRIPTION} characters; give a shorter one"
        )


# ── what it is given ────────────────────────────────────────────────────────────────────────────────────────────────


def declared_here(event: NewEvent, module: str) -> EventSource:
    """Declare the event in the worker's own module."""
    return EventSource(
        event.topic,
        event.name,
        event.name,
        homes_of(event),
        sample_event(event, module),
        _ids(each.name for each in event.fields),
        tuple(write_event(event)),
    )


def declared_elsewhere(kind: EventType[Any], binding: tuple[str, str] | None = None) -> EventSource:
    """Import the event; `binding` is the name and module of the ProtobufEvent that binds a Protobuf class."""
    model, name = kind.model, kind.name
    homes = {name: model.__module__}
    if issubclass(model, Event):
        return EventSource(kind.topic, name, name, homes, _sample_of(model), _ids(model.model_fields))
    if binding is None:
        text = f"ProtobufEvent({name}, topic={quote(kind.topic)})({name}())"
        made = Sample(None, text, {**homes, "ProtobufEvent": "cdc_reactor"})
        return EventSource(kind.topic, name, name, homes, made, needs_topic=True)
    variable, home = binding
    made = Sample(None, f"{variable}({name}())", {**homes, variable: home})
    return EventSource(kind.topic, variable, name, {**homes, variable: home}, made)


def _sample_of(model: type[Event]) -> Sample | None:
    try:
        return sample_model(model)
    except NoSample:
        return None


def untouched(topic: str) -> EventSource:
    """Take the message as it is."""
    homes = {"Message": "cdc_reactor"}
    made = Sample(None, 'Message(b"anything", message_id="1")', homes)
    return EventSource(topic, "Message", "Message", homes, made, needs_topic=True)


def _ids(fields: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in fields if name == "id" or name.endswith("_id"))[:_MAX_IDS]


# ── the module ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_worker(worker: NewWorker, event: EventSource) -> WorkerSources:
    """Write the module of a worker, and its test."""
    return WorkerSources(_write_module(worker, event), _write_test(worker, event))


def _write_module(worker: NewWorker, event: EventSource) -> str:
    decorator = "notifies" if worker.notifies else "subscribes"
    homes = {**event.homes, "Context": "cdc_reactor", decorator: "cdc_reactor"}
    homes |= {"Notification": "cdc_reactor"} if worker.notifies else {}
    declaration = ["", "", *event.declaration] if event.declaration else []
    return join(
        docstring(f"Reacts to {event.topic}: says which message came, for a start."),
        "",
        *write_imports(homes, first_party=worker.first_party),
        *declaration,
        "",
        "",
        *_write_function(worker, event, decorator),
    )


def _write_function(worker: NewWorker, event: EventSource, decorator: str) -> list[str]:
    subject = "message" if event.annotation == "Message" else "event"
    options = [event.given, f"subscription={quote(worker.subscription)}"]
    options += [f"topic={quote(event.topic)}"] if event.needs_topic else []
    returned = "list[Notification]" if worker.notifies else "None"
    start = f"{'async ' if worker.is_async else ''}def {worker.name}"
    what = "Return what people are to be told: nobody anything, for a start." if worker.notifies else "Say what came."
    return [
        *call(f"@{decorator}", options, "", 0),
        *call(start, [f"{subject}: {event.annotation}", "ctx: Context"], f" -> {returned}:", 0),
        docstring(what, 4),
        *_write_log(event, subject),
        *(["    return []"] if worker.notifies else []),
    ]


def _write_log(event: EventSource, subject: str) -> list[str]:
    topic = percent(event.topic)
    if subject == "message":
        arguments = [quote(f"{topic}: message %s"), "message.message_id"]
    elif event.ids:
        values = " ".join(f"{name}=%s" for name in event.ids)
        arguments = [quote(f"{topic}: {values}"), *(f"event.{name}" for name in event.ids)]
    else:
        arguments = [quote(f"{topic}: %s in message %s"), "type(event).__name__", "ctx.message.message_id"]
    return call("    ctx.log.info", arguments, "", 4)


# ── its test ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_test(worker: NewWorker, event: EventSource) -> str:
    made = None if event.sample is None else _write_call(worker.name, event.sample)
    homes = {worker.name: worker.module}
    if event.sample is not None and made is not None:
        homes |= {**event.sample.homes, "Callable": "collections.abc", "Run": "cdc_reactor.testing"}
    return join(
        docstring(f"The worker {worker.name}, run without any broker."),
        "",
        *write_imports(homes, first_party=worker.first_party),
        "",
        "",
        f"def {_test_name(worker, event)}({'expect_acked: Callable[..., Run]' if made else ''}) -> None:",
        docstring("It takes what its topic carries.", 4),
        *(made or _write_no_call(worker, event)),
    )


def _test_name(worker: NewWorker, event: EventSource) -> str:
    of_topic = topic_words(event.topic)
    name = f"test_{worker.name}_takes_{'an' if of_topic[0] in 'aeiou' else 'a'}_{of_topic}"
    return name if len(name) <= _MAX_TEST_NAME else "test_it_takes_a_message"


def _write_call(worker: str, made: Sample) -> list[str] | None:
    """Hand the worker one message; None where that would not fit into lines."""
    line = f"    expect_acked({worker}, {made.text})"
    if len(line) <= LINE_LENGTH:
        return [line]
    start, _, _ = made.text.partition("(")
    lines = call(f"    event = {start}", made.arguments, "", 4)
    fits = bool(made.arguments) and all(len(each) <= LINE_LENGTH for each in lines)
    return [*lines, "", f"    expect_acked({worker}, event)"] if fits else None


def _write_no_call(worker: NewWorker, event: EventSource) -> list[str]:
    return [
        "    # Nobody could guess a value of it: make one here, and hand it to the fixture `expect_acked`.",
        f"    assert {worker.name}.topic == {quote(event.topic)}",
    ]
