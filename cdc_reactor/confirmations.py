"""What goes back to the broker for one subscription: acks, nacks and extensions, until it confirmed them.

Acks are many requests at a time, each as full as a moment makes it; nacks one request after the other, for their order
matters; extensions rounds of all that is due. All of them are unary calls, retried for as long as it makes sense, and
independent of any stream. Neighbours: `leases` says what is held, `pubsub` says what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from math import inf
from typing import Any, Protocol

import msgspec
from google.pubsub_v1 import types
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError

from cdc_reactor.leases import Leases, Round
from cdc_reactor.messages import Delivery
from cdc_reactor.pubsub_connection import ACKNOWLEDGE, MODIFY_ACK_DEADLINE, RETRYABLE, Connection, backoff

#: A request may have 512 KiB (https://cloud.google.com/pubsub/quotas#resource_limits); an ack id is up to 250 of them.
IDS_A_REQUEST = 1000
_REQUESTS_IN_FLIGHT = 8
_CALL_TIMEOUT = 10.0

_AckRequest: Any = types.AcknowledgeRequest.pb()
_DeadlineRequest: Any = types.ModifyAckDeadlineRequest.pb()


class Listener(Protocol):
    """What is told of acks and leases: once a request, never once a message."""

    def acks_confirmed(self, count: int, seconds: float) -> None:
        """Hear of acks that came back OK, and how long that took with all retries."""

    def leases_expired(self, count: int) -> None:
        """Hear that leases were given up; their messages will be delivered again."""


class Confirmations:
    """Acks, nacks and extensions of one subscription, on their way to the broker until it confirmed them.

    Acks wait up to `linger` seconds for others, or until there are `enough` of them.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        *,
        leases: Leases,
        ack_deadline: float,
        observer: Listener,
        linger: float = 0.010,
        enough: int = IDS_A_REQUEST,
    ) -> None:
        self._connection = connection
        self._path = path
        self._leases = leases
        self._ack_deadline = ack_deadline
        self._observer = observer
        self._linger_seconds = linger
        self._enough = enough
        self._acks: list[Delivery] = []
        self._nacks: list[Delivery] = []
        self._acking: set[asyncio.Task[None]] = set()
        self._nacking: asyncio.Task[None] | None = None
        self._extending: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None
        self._progress = asyncio.Event()
        self._is_closed = False
        #: Called when something is held no more.
        self.on_release: Callable[[], None] = _nothing
        #: Called with what the broker confirmed as acknowledged, and with what was to be when its lease was gone.
        self.on_acked: Callable[[list[Delivery]], None] = _nothing
        self.on_too_late: Callable[[list[Delivery]], None] = _nothing
        #: Nacks that are not confirmed: messages, and bytes of their data.
        self.returning = 0
        self.returning_bytes = 0

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Add to the next requests; an ack id is read when it is sent, for it may change until then."""
        self._acks += deliveries
        self._send_acks(all_of_them=len(self._acks) >= self._enough)

    def nack(self, ack_ids: list[str]) -> None:
        """Let go of leases, in this order; what is not held is left out."""
        released = self._leases.release(ack_ids)
        if not released or self._is_closed:
            return
        self._nacks += released
        self.returning += len(released)
        self.returning_bytes += sum([len(d.message.data) for d in released])
        if self._nacking is None:
            self._nacking = asyncio.create_task(self._give_back())

    def watch_leases(self) -> None:
        """Look after what is held now, unless that is going on already."""
        if self._due is None and self._extending is None and not self._is_closed:
            self._set_alarm()

    async def settled(self, seconds: float) -> bool:
        """Wait until nothing is under way; False where that takes longer."""
        self._send_acks(all_of_them=True)
        return await wait_within(seconds, self._until_settled())

    async def close(self) -> None:
        """Drop what is under way."""
        self._is_closed = True
        for timer in (self._linger, self._due):
            if timer is not None:
                timer.cancel()
        self._linger = self._due = None
        await cancel_all(*self._acking, self._nacking, self._extending)

    async def _until_settled(self) -> None:
        while self._acks or self._acking or self._nacks or self._nacking is not None:
            self._progress.clear()
            await self._progress.wait()

    def _note_progress(self) -> None:
        self._progress.set()
        self.on_release()

    # Acks: many requests at a time.

    def _send_acks(self, *, all_of_them: bool = False) -> None:
        while self._acks and len(self._acking) < _REQUESTS_IN_FLIGHT and not self._is_closed:
            if len(self._acks) < IDS_A_REQUEST and not all_of_them:
                break
            task = asyncio.create_task(self._acknowledge(self._acks[:IDS_A_REQUEST]))
            del self._acks[:IDS_A_REQUEST]
            self._acking.add(task)
            task.add_done_callback(self._acknowledged)
        if self._acks and self._linger is None and not self._is_closed:
            self._linger = asyncio.get_running_loop().call_later(self._linger_seconds, self._linger_is_over)

    def _linger_is_over(self) -> None:
        self._linger = None
        if len(self._acking) < _REQUESTS_IN_FLIGHT:
            self._send_acks(all_of_them=True)

    def _acknowledged(self, task: asyncio.Task[None]) -> None:
        self._acking.discard(task)
        self._send_acks()
        self._note_progress()

    async def _acknowledge(self, deliveries: list[Delivery]) -> None:
        """Send one request until it is confirmed, or none of its leases is left."""
        clock = asyncio.get_running_loop().time
        started = clock()
        pauses = backoff()
        while deliveries := self._still_held(deliveries):
            asked = {d.ack_id: d for d in deliveries}
            ack_ids = list(asked)
            request = _AckRequest(subscription=self._path, ack_ids=ack_ids)
            try:
                await self._connection.call(ACKNOWLEDGE, request, within=_CALL_TIMEOUT)
                answer = _Answer(ack_ids)
            except AioRpcError as error:
                answer = _answer(error, ack_ids)
            if answer.confirmed:
                self.on_acked(self._leases.release(answer.confirmed))
                self._observer.acks_confirmed(len(answer.confirmed), clock() - started)
            self._give_up(answer.refused)
            if answer.refused:
                # Done, and ours no more; what came again meanwhile goes on below under its new id.
                refused = set(answer.refused)
                self.on_too_late([d for ack_id, d in asked.items() if ack_id in refused and d.ack_id == ack_id])
            self._note_progress()
            # Also what came again meanwhile, and has another ack id now.
            again = set(answer.again)
            deliveries = [d for ack_id, d in asked.items() if ack_id in again or d.ack_id != ack_id]
            if again:
                await asyncio.sleep(next(pauses))

    def _still_held(self, deliveries: list[Delivery]) -> list[Delivery]:
        held = set(self._leases.still_held([d.ack_id for d in deliveries]))
        if len(held) == len(deliveries):
            return deliveries
        self.on_too_late([d for d in deliveries if d.ack_id not in held])
        return [d for d in deliveries if d.ack_id in held]

    # Nacks: one request after the other, for their order matters.

    async def _give_back(self) -> None:
        try:
            while self._nacks:
                deliveries = self._nacks[:IDS_A_REQUEST]
                del self._nacks[:IDS_A_REQUEST]
                await self._nack([d.ack_id for d in deliveries])
                self.returning -= len(deliveries)
                self.returning_bytes -= sum([len(d.message.data) for d in deliveries])
                self.on_release()
        finally:
            self._nacking = None
            self._note_progress()

    async def _nack(self, ack_ids: list[str]) -> None:
        """Send one request until it is confirmed, or its leases have run out anyway."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._ack_deadline
        for pause in backoff():
            ack_ids = (await self._modify(ack_ids, 0)).again
            if not ack_ids or loop.time() + pause > end:
                return
            await asyncio.sleep(pause)

    # Extensions: rounds of everything that is due.

    def _set_alarm(self) -> None:
        due_at = self._leases.next_due()
        if due_at < inf and not self._is_closed:
            self._due = asyncio.get_running_loop().call_at(due_at, self._alarm)

    def _alarm(self) -> None:
        self._due = None
        now = asyncio.get_running_loop().time()
        given_up = self._leases.given_up
        asked = self._leases.due(now)
        self._tell_given_up(since=given_up)
        if asked is None:
            self._set_alarm()
        else:
            self._extending = asyncio.create_task(self._extend(asked, now))

    async def _extend(self, asked: Round, asked_at: float) -> None:
        is_extended = False
        try:
            is_extended = await self._is_extended(asked.ack_ids)
        finally:
            if is_extended:
                self._leases.extended(asked, asked_at)
            else:
                again_at = asyncio.get_running_loop().time() + min(1.0, self._ack_deadline / 20)
                self._leases.not_extended(asked, again_at)
            self._extending = None
            self._set_alarm()

    async def _is_extended(self, ack_ids: list[str]) -> bool:
        """Ask for more time for all of them; False where some are to be asked for again."""
        parts = [ack_ids[i : i + IDS_A_REQUEST] for i in range(0, len(ack_ids), IDS_A_REQUEST)]
        answers: list[_Answer] = []
        for i in range(0, len(parts), _REQUESTS_IN_FLIGHT):
            some = [self._modify(part, int(self._ack_deadline)) for part in parts[i : i + _REQUESTS_IN_FLIGHT]]
            answers += await asyncio.gather(*some)
        self._give_up([ack_id for a in answers for ack_id in a.refused])
        return not any(a.again for a in answers)

    async def _modify(self, ack_ids: list[str], seconds: int) -> _Answer:
        request = _DeadlineRequest(subscription=self._path, ack_ids=ack_ids, ack_deadline_seconds=seconds)
        try:
            await self._connection.call(MODIFY_ACK_DEADLINE, request, within=_CALL_TIMEOUT)
        except AioRpcError as error:
            return _answer(error, ack_ids)
        return _Answer(ack_ids)

    def _give_up(self, ack_ids: list[str]) -> None:
        given_up = self._leases.given_up
        self._leases.give_up(ack_ids)
        self._tell_given_up(since=given_up)

    def _tell_given_up(self, since: int) -> None:
        count = self._leases.given_up - since
        if count:
            self._observer.leases_expired(count)
            self.on_release()


class _Answer(msgspec.Struct, frozen=True):
    """What became of the ack ids of one request: done, to be sent again, or ours no more."""

    confirmed: list[str]
    again: list[str] = []
    refused: list[str] = []


def _answer(error: AioRpcError, ack_ids: list[str]) -> _Answer:
    """Read a failed request: all of it failed, or, with exactly-once delivery, the ack ids that it names."""
    named = _named_failures(error)
    failed = [a for a in ack_ids if a in named]
    if failed:
        # https://cloud.google.com/pubsub/docs/exactly-once-delivery: TRANSIENT_FAILURE_…, PERMANENT_FAILURE_….
        again = [a for a in failed if named[a].startswith("TRANSIENT_")]
        refused = [a for a in failed if not named[a].startswith("TRANSIENT_")]
        return _Answer([a for a in ack_ids if a not in named], again, refused)
    return _Answer([], ack_ids) if error.code() in RETRYABLE else _Answer([], [], ack_ids)


def _named_failures(error: AioRpcError) -> dict[str, str]:
    """Return what the error's details say of single ack ids."""
    named: dict[str, str] = {}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    named.update(info.metadata)
    return named


async def wait_within(seconds: float, waiting: Coroutine[Any, Any, Any]) -> bool:
    """Wait for something, for so many seconds at most; tell whether it came."""
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return False
    return True


async def cancel_all(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks, and wait until they have ended."""
    running = [t for t in tasks if t is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _nothing(*_: object) -> None:
    """Do nothing."""
