"""What is to become of one message: `expect_acked(worker, event)`, `expect_nacked`, `expect_dead_lettered`.

Each sends one message through the worker as the daemon would, by a `Harness`, and returns the Run, to look at what was
written, published and sent. Which messages are acknowledged or go back is told by the first attempt, so that a worker
that needs a second one is not taken for one that works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Engine

from cdc_reactor.errors import WorldError
from cdc_reactor.events import EVENT_ID, Encoding, Event, ProtobufEvent, ProtobufFact, encode, key_of
from cdc_reactor.experiments import ExperimentClient
from cdc_reactor.harness import Harness, Run
from cdc_reactor.messages import Message, Settlement, Verdict
from cdc_reactor.testing_drive import new_message
from cdc_reactor.workers import Worker

T = TypeVar("T")


class ExpectsAck(Protocol):
    """What the fixture `expect_acked` gives: the function of that name, on the test's database."""

    def __call__(
        self,
        worker: Worker[T],
        sent: T | ProtobufFact[Any] | Message | bytes,
        *,
        key: str = "",
        attributes: Mapping[str, str] | None = None,
        experiments: ExperimentClient | None = None,
    ) -> Run:
        """Send a message, and fail unless the worker's first attempt succeeds."""


class ExpectsFailure(Protocol):
    """What the other two fixtures give: the functions of their names, on the test's database."""

    def __call__(
        self,
        worker: Worker[T],
        sent: T | ProtobufFact[Any] | Message | bytes,
        *,
        match: str = "",
        key: str = "",
        attributes: Mapping[str, str] | None = None,
        experiments: ExperimentClient | None = None,
    ) -> Run:
        """Send a message, and fail unless that becomes of it which is expected, for this reason."""


def expect_acked(
    worker: Worker[T],
    sent: T | ProtobufFact[Any] | Message | bytes,
    *,
    engine: Engine | None = None,
    key: str = "",
    attributes: Mapping[str, str] | None = None,
    experiments: ExperimentClient | None = None,
) -> Run:
    """Send a message, and fail unless the worker's first attempt succeeds.

    `sent` is the event, which is encoded as its publisher would, or a Message or bytes as they are. `engine` is the
    database; SQLite in memory, unless given.

    Raises:
        AssertionError: the attempt failed; caused by what the worker raised.
        TypeError: the worker subscribes to other events.
    """
    message = _message_of(worker, sent, key=key, attributes=attributes)
    run = _harness(worker, message, engine, experiments).run(until_failure=True)
    return _expect(Verdict.ACK, worker, message, run)


def expect_nacked(
    worker: Worker[T],
    sent: T | ProtobufFact[Any] | Message | bytes,
    *,
    match: str = "",
    engine: Engine | None = None,
    key: str = "",
    attributes: Mapping[str, str] | None = None,
    experiments: ExperimentClient | None = None,
) -> Run:
    """Send a message, and fail unless the worker's first attempt fails in such a way that the message is tried again.

    Whether a later attempt would succeed is not asked. Where the world failed (no database), the message is tried
    again, too. A worker with `max_attempts=1` never does that: its messages are dead letters. `match` is a regular
    expression that is searched in the reason.

    Raises:
        AssertionError: the attempt succeeded, or the message is dead already, or it failed of something else.
        TypeError: the worker subscribes to other events.
    """
    message = _message_of(worker, sent, key=key, attributes=attributes)
    run = _harness(worker, message, engine, experiments).run(until_failure=True)
    _expect(Verdict.NACK, worker, message, run)
    reason = _failures(run)
    if not re.search(match, reason):
        raise AssertionError(
            f"{worker.name} ({worker.place}): the message is to be tried again, but not for {match!r}: {reason}"
        ) from next((failure.error for failure in run.failures), None)
    return run


def expect_dead_lettered(
    worker: Worker[T],
    sent: T | ProtobufFact[Any] | Message | bytes,
    *,
    match: str = "",
    engine: Engine | None = None,
    key: str = "",
    attributes: Mapping[str, str] | None = None,
    experiments: ExperimentClient | None = None,
) -> Run:
    """Send a message, and fail unless it ends among the dead letters: at once, or after the worker's last attempt.

    `match` is a regular expression that is searched in the reason. `run.dead_letters[0].attempts` tells how often it
    was tried.

    Raises:
        AssertionError: it was acknowledged, or is still to be tried, or died of something else.
        TypeError: the worker subscribes to other events.
    """
    message = _message_of(worker, sent, key=key, attributes=attributes)
    try:
        run = _harness(worker, message, engine, experiments).run()
    except WorldError as error:
        raise AssertionError(
            f"{worker.name} ({worker.place}) waits for the world, of which no message dies: {error}"
        ) from error
    _expect(Verdict.DEAD_LETTER, worker, message, run)
    settlement = _settlement(message, run)
    if not re.search(match, settlement.reason):
        raise AssertionError(
            f"{worker.name} ({worker.place}): the message is a dead letter, but not for {match!r}: {settlement.reason}"
        ) from settlement.error
    return run


def _harness(
    worker: Worker[Any], message: Message, engine: Engine | None, experiments: ExperimentClient | None
) -> Harness:
    return Harness(worker, engine=engine, experiments=experiments).message(worker, message)


def _message_of(worker: Worker[Any], sent: object, *, key: str, attributes: Mapping[str, str] | None) -> Message:
    """Make what is sent a message as its publisher would."""
    if isinstance(sent, Message):
        if key or attributes is not None:
            raise TypeError("a Message has its own key and attributes: give them there")
        return sent if sent.message_id else msgspec.structs.replace(sent, message_id=new_message(b"").message_id)
    if isinstance(sent, bytes):
        return new_message(sent, key=key, attributes=attributes)
    event = _event_of(worker, sent)
    given = {EVENT_ID: new_message(b"").message_id, **(attributes or {})}
    return new_message(encode(event), key=key or key_of(event), attributes=given)


def _event_of(worker: Worker[Any], sent: object) -> Event | ProtobufFact[Any]:
    kind = worker.event_type
    if isinstance(sent, Event | ProtobufFact) and sent.topic == kind.topic:
        return sent
    if kind.encoding in (Encoding.PROTOBUF, Encoding.PROTOBUF_JSON) and isinstance(sent, kind.model):
        return ProtobufEvent(kind.model, topic=kind.topic, encoding=kind.encoding)(sent)
    told = f"of {sent.topic}" if isinstance(sent, Event | ProtobufFact) else "no event: send the bytes, or a Message"
    raise TypeError(f"{worker.name} subscribes to {kind.topic} ({kind.name}); this {type(sent).__name__} is {told}")


def _expect(verdict: Verdict, worker: Worker[Any], message: Message, run: Run) -> Run:
    settlement = _settlement(message, run)
    if settlement.verdict is not verdict:
        error = settlement.error or next((failure.error for failure in run.failures), None)
        raise AssertionError(
            f"{worker.name} ({worker.place}): {_WANTED[verdict]}, but it was {_told(settlement, run)}"
        ) from error
    return run


_WANTED = {
    Verdict.ACK: "the message was to be acknowledged",
    Verdict.NACK: "the message was to be tried again",
    Verdict.DEAD_LETTER: "the message was to be a dead letter",
}


def _told(settlement: Settlement, run: Run) -> str:
    why = _failures(run)
    match settlement.verdict:
        case Verdict.ACK:
            return "acknowledged" + (f" after {len(run.failures)} failed attempts: {why}" if run.failures else "")
        case Verdict.NACK:
            return f"{'kept, and its worker halted' if run.halted else 'given back (NACK)'}: {why}"
        case Verdict.DEAD_LETTER:
            return f"a dead letter after attempt {settlement.attempts}: {settlement.reason}"


def _failures(run: Run) -> str:
    return "; ".join([*(failure.told for failure in run.failures), *run.pauses]) or "nothing failed"


def _settlement(message: Message, run: Run) -> Settlement:
    return next(settlement for settlement in run.settlements if settlement.delivery.message is message)
