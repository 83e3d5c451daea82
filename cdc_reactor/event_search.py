"""Finds the event that a topic carries among what a team has declared, for `cdc-reactor new`.

It imports the team's modules, as `discovery` does; `worker_scaffold` writes what is found. Nothing is written here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdc_reactor.discovery import Discovery, discover
from cdc_reactor.errors import UsageError
from cdc_reactor.event_scaffold import EventField, NewEvent
from cdc_reactor.events import Encoding, EventType, ProtobufEvent
from cdc_reactor.handlers import Handler
from cdc_reactor.worker_scaffold import EventSource, NewWorker, declared_elsewhere, declared_here, untouched
from cdc_reactor.workers import Worker


@dataclass(frozen=True, slots=True)
class Found:
    """What a topic carries, if that is declared anywhere, and all that it was looked for among."""

    event: EventType[Any] | None
    among: Discovery


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for: the untouched message, or fields to declare an event with."""

    is_raw: bool = False
    fields: tuple[EventField, ...] = ()


def find_event(topic: str, targets: Sequence[str]) -> Found:
    """Import the team's modules, and find what a topic carries.

    Raises:
        UsageError: a target does not exist; or nothing was found and a module, which may declare it, does not import.
    """
    found = discover(targets)
    # What one worker reads by a parser of its own says nothing of how it is published.
    named = [event for event in found.events if event.encoding not in (Encoding.RAW, Encoding.CUSTOM)]
    event = next((event for event in named if event.topic == topic), None)
    if event is None and found.failures:
        raise UsageError(f"{found.failures[0]}; mend it first: it may declare what {topic} carries")
    return Found(event, found)


def choose(topic: str, worker: NewWorker, wishes: Wishes, targets: Sequence[str]) -> EventSource:
    """Say what a new worker is given: the untouched message, a declared event, or one declared in its module.

    Raises:
        UsageError: the wishes do not go together, nothing is known of the event, or the worker's name or subscription
            is another's.
    """
    if wishes.is_raw and (wishes.fields or worker.notifies):
        raise UsageError("--raw: the message is untouched; leave out --field, --from and --notifies")
    if wishes.is_raw:
        _refuse_namesakes(worker, discover(targets))
        return untouched(topic)
    found = find_event(topic, targets)
    _refuse_namesakes(worker, found.among)
    if found.event is not None and wishes.fields:
        declared = f"{found.event.model.__module__} declares {found.event.name} for {topic}"
        raise UsageError(f"{declared}; leave out --field and --from: it is imported")
    if found.event is not None:
        return declared_elsewhere(found.event, _binding(topic))
    if not wishes.fields:
        raise UsageError(
            f"no module declares what {topic} carries; give its fields (--field post_id:int, or --from FILE), declare "
            "it (cdc-reactor new event), say where it is (--handlers PACKAGE), or take the untouched message (--raw)"
        )
    return declared_here(NewEvent(topic, wishes.fields), worker.module)


def _refuse_namesakes(worker: NewWorker, found: Discovery) -> None:
    others: list[Handler[Any] | Worker[Any]] = [*found.handlers, *found.workers]
    for other in others:
        if other.name == worker.name:
            raise UsageError(f"--name {worker.name}: {other.place} has that name already; choose another")
        if isinstance(other, Worker) and other.subscription == worker.subscription:
            raise UsageError(
                f"--subscription {worker.subscription}: it is {other.name}'s already ({other.place}); choose another"
            )


def _binding(topic: str) -> tuple[str, str] | None:
    """Name the ProtobufEvent of a topic, and the module where it stands; discovery has imported it."""
    bound = [
        (name, module)
        for module, values in list(sys.modules.items())
        for name, value in list(getattr(values, "__dict__", {}).items())
        if isinstance(value, ProtobufEvent) and value.topic == topic and not name.startswith("_")
    ]
    return min(bound, key=lambda each: (each[1].count("."), each), default=None)
