"""A subscription: deliveries off its stream, leases kept, acks and nacks confirmed.

One stream is read on raw protobuf, and opened again whenever it ends for a reason that may pass. All that is sent back
goes by unary calls, because acks on the stream say nothing of their success; so leases and acks go on while the stream
is down. Nothing here looks into a message. Everything belongs to one event loop. Neighbours: `leases` knows what is
held, `pubsub_connection` has the channels, `consumer` feeds the reactor.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from google.pubsub_v1 import types
from grpc import ChannelConnectivity, StatusCode
from grpc.aio import EOF, AioRpcError

from cdc_reactor.confirmations import IDS_A_REQUEST, Confirmations, cancel_all, wait_within
from cdc_reactor.errors import ReactorError, UsageError, WorldError
from cdc_reactor.leases import Leases
from cdc_reactor.messages import Delivery
from cdc_reactor.pubsub_connection import (
    Connection,
    StreamChannel,
    SubscriptionInfo,
    backoff,
    is_denied,
    routed,
)
from cdc_reactor.pubsub_responses import Deliveries, parse_response
from cdc_reactor.recognition import Recognition

# Version 1 of the protocol: the client sends an empty request every 30 s, and the server answers each with an empty
# response within 15 s (https://github.com/googleapis/google-cloud-go/pull/13457). Not every broker does.
_PROTOCOL_VERSION = 1

#: How long, when the intake stops, we wait for the broker to end the stream: what is on its way would else stay leased.
_LAST_RESPONSES = 0.5

_Request: Any = types.StreamingPullRequest.pb()

#: Statuses with which another stream would end as well.
_FINAL = frozenset(
    {
        StatusCode.FAILED_PRECONDITION,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.UNIMPLEMENTED,
    }
)


class Limits(msgspec.Struct, frozen=True):
    """How much is held at most, in messages and in bytes of data (0: no limit), and for how long, in seconds.

    `ack_deadline` is 10 to 600; a lease is extended until it is `max_lease` old. A stream on which nothing came for
    `quiet` seconds, although there was room, is opened anew; so is one whose broker is known to answer heartbeats and
    left one of them, sent every `heartbeat` seconds, without an answer for half that time. Acks wait `linger` seconds
    for others to go with them, unless half of all that may be held waits.
    """

    max_messages: int = 10_000
    max_bytes: int = 100 * 1024 * 1024
    ack_deadline: float = 60.0
    max_lease: float = 3600.0
    quiet: float = 300.0
    heartbeat: float = 30.0
    linger: float = 0.010


#: How far a subscription is widened at most, in messages.
WIDEST = 1_000

_WIDENED = "more room is needed"


class Observer(Protocol):
    """What a subscription tells of itself: once a request or a stream, never once a message."""

    def stream_opened(self) -> None:
        """Hear that the broker answered on a new stream."""

    def reconnected(self, reason: str) -> None:
        """Hear that a stream ended and another is going to be opened; `reason` is "STATUS: details" or a few words."""

    def acks_confirmed(self, count: int, seconds: float) -> None:
        """Hear of acks that came back OK, and how long that took with all retries."""

    def leases_expired(self, count: int) -> None:
        """Hear that leases were given up; their messages will be delivered again."""


class Unobserved:
    """An Observer that nobody listens to."""

    def stream_opened(self) -> None:
        """Do nothing."""

    def reconnected(self, reason: str) -> None:
        """Do nothing."""

    def acks_confirmed(self, count: int, seconds: float) -> None:
        """Do nothing."""

    def leases_expired(self, count: int) -> None:
        """Do nothing."""


class Subscription:
    """The deliveries of one subscription; not thread-safe. `open` it first, `close` it in the end.

    A delivery counts as held from its arrival until the broker confirmed its ack or nack, or its lease was given up.
    With `publish_times` messages say when they were published.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        limits: Limits | None = None,
        observer: Observer | None = None,
        publish_times: bool = False,
    ) -> None:
        self.path = connection.subscription_path(name)
        self.limits = self._given_limits = limits = limits or Limits()
        self.observer = observer or Unobserved()
        #: What the broker says of it; None where we may receive and not ask.
        self.info: SubscriptionInfo | None = None
        self.connection = connection
        self._leases = Leases(limits.ack_deadline, limits.max_lease, jitter=random.random)
        self._confirmations = Confirmations(
            connection,
            self.path,
            leases=self._leases,
            ack_deadline=limits.ack_deadline,
            observer=self.observer,
            linger=limits.linger,
            enough=max(1, min(IDS_A_REQUEST, limits.max_messages // 2 or IDS_A_REQUEST)),
        )
        self._confirmations.on_release = self._look_for_room
        self._arrived: list[Delivery] = []
        # What was received and neither acknowledged nor given back by our side: messages, and bytes of their data.
        self._unsettled = self._unsettled_bytes = 0
        self._deliveries = Deliveries(publish_times=publish_times)
        self._recognition = Recognition()
        self._confirmations.on_acked = self._recognition.confirmed
        self._confirmations.on_too_late = self._recognition.too_late
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._stream: _Stream | None = None
        self._channel: StreamChannel | None = None
        self._reader: asyncio.Task[None] | None = None
        self._failure: ReactorError | None = None
        self._is_stopping = False

    @property
    def held(self) -> int:
        """How many deliveries are held."""
        return len(self._leases) + self._confirmations.returning

    @property
    def held_bytes(self) -> int:
        """Bytes of data of everything that is held."""
        return self._leases.size_bytes + self._confirmations.returning_bytes

    @property
    def oldest_held_age(self) -> float | None:
        """How long ago, in seconds, the oldest delivery that is held arrived; None where nothing is."""
        since = self._leases.oldest_since
        return None if since is None else asyncio.get_running_loop().time() - since

    @property
    def is_open(self) -> bool:
        """Whether a stream is up."""
        return self._stream is not None and self._stream.is_up()

    @property
    def last_response(self) -> float:
        """When the broker last said something on a stream, in the loop's time; 0 for never."""
        return 0.0 if self._stream is None else self._stream.last_response

    async def open(self) -> None:
        """Open the stream.

        Raises: UsageError when there is no such subscription, or it is not ours; WorldError when nothing answers.
        """
        try:
            self.info = await self.connection.subscription(self.path)
        except UsageError as error:
            # roles/pubsub.subscriber may consume and not ask.
            if not is_denied(error):
                raise
        self._channel = self.connection.take_stream_channel()
        self._stream = stream = _Stream(self._channel.channel, self)
        self._reader = asyncio.create_task(self._read(stream))
        # Some brokers say nothing before the first message. A subscription that we could look at rarely fails then;
        # another must prove itself a little longer. What fails later is raised by `receive`.
        await stream.wait_until_heard(2.0 if self.info is None else 0.3)
        if self._failure is not None:
            await self.close()
            raise self._failure

    @property
    def has_more(self) -> bool:
        """Whether `receive` would not wait."""
        return bool(self._arrived) or self._failure is not None or self._is_stopping

    async def receive(self) -> list[Delivery]:
        """Wait for deliveries and return all that have arrived, in order; none once the intake was stopped.

        Raises: UsageError or WorldError when the stream ended for a reason that will not pass.
        """
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            if self._is_stopping:
                return []
            self._news.clear()
            await self._news.wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge in the background; what comes again all the same is acknowledged again, and not received."""
        done = list(deliveries)
        self._count_unsettled(done, -1)
        self._confirmations.ack(done)

    def nack(self, deliveries: Iterable[Delivery]) -> None:
        """Give back in the background, in this order; the broker delivers again at once, to whoever listens."""
        given_back = list(deliveries)
        self._count_unsettled(given_back, -1)
        self._recognition.given_back(given_back)
        self._confirmations.nack([d.ack_id for d in given_back])

    def lost(self) -> list[Delivery]:
        """Return the deliveries whose leases were given up since the last call: they will come again.

        A lease is given up when it is `max_lease` old, when it ran out because the broker could not be reached, and
        when the broker says, with exactly-once delivery, that it is ours no more.
        """
        return self._leases.lost()

    async def stop_intake(self) -> None:
        """Stop receiving, within 0.5 s; what is held stays leased, and what nobody received yet is given back.

        Nack after this and not before: while the stream is open, the broker delivers again what it was given back.
        """
        self._is_stopping = True
        unwanted, self._arrived = self._arrived, []
        self._news.set()
        self._room.set()
        if self._reader is not None and self._stream is not None:
            await wait_within(_LAST_RESPONSES, self._last_responses(self._stream, self._reader))
            await cancel_all(self._reader)
        unwanted += self._arrived
        self._arrived = []
        # Backwards: were the first of a row given back first, it could be elsewhere before the rest of its row is free.
        self.nack(reversed(unwanted))

    async def drained(self, timeout: float) -> bool:  # noqa: ASYNC109 - answers False instead of raising
        """Wait until no ack or nack is under way any more; False where that takes longer than `timeout` seconds."""
        return await self._confirmations.settled(timeout)

    async def close(self) -> None:
        """Stop at once; what is still held comes again when its lease runs out."""
        self._is_stopping = True
        self._news.set()
        if self._reader is not None:
            await cancel_all(self._reader)
        await self._confirmations.close()
        if self._channel is not None:
            self._channel.release()
            self._channel = None

    def is_full(self) -> bool:
        """Tell whether flow control forbids to read on."""
        limits = self.limits
        # What was handed out is in memory also when its lease was given up.
        messages, size_bytes = max(self.held, self._unsettled), max(self.held_bytes, self._unsettled_bytes)
        return 0 < limits.max_messages <= messages or 0 < limits.max_bytes <= size_bytes

    def widen(self) -> None:
        """Let twice as many messages be held, WIDEST at most, because what is held cannot be handled now.

        The stream is opened again for that, and with the given limits once it ends by itself.
        """
        wider = min(WIDEST, 2 * self.limits.max_messages)
        if self.limits.max_messages < wider and self._stream is not None:
            self.limits = msgspec.structs.replace(self.limits, max_messages=wider)
            self._stream.cut(_WIDENED)
            self._look_for_room()

    async def has_room(self) -> None:
        """Wait until flow control lets us read on."""
        while self.is_full() and not self._is_stopping:
            self._room.clear()
            await self._room.wait()

    def arrive(self, response: Any, now: float) -> None:
        """Take a response's deliveries off the stream."""
        new, held_again, done_again = self._recognition.sort(self._deliveries.of(response), now)
        for held, again in held_again:
            # It goes on under its new ack id, wherever it is: in a lane, in a handler, on its way back.
            self._leases.release((held.ack_id,))
            held.ack_id = again.ack_id
            self._leases.take([held], now)
        if done_again:
            self._leases.take(list(done_again), now)
            self._confirmations.ack(done_again)
        self._leases.take(new, now)
        self._count_unsettled(new, 1)
        self._confirmations.watch_leases()
        self._arrived += new
        self._news.set()

    def _count_unsettled(self, deliveries: list[Delivery], sign: int) -> None:
        self._unsettled += sign * len(deliveries)
        self._unsettled_bytes += sign * sum([len(d.message.data) for d in deliveries])
        if sign < 0:
            self._look_for_room()

    def _look_for_room(self) -> None:
        if not self._room.is_set() and not self.is_full():
            self._room.set()

    async def _last_responses(self, stream: _Stream, reader: asyncio.Task[None]) -> None:
        """Let the broker end the stream, where there is one."""
        if await stream.finish():
            await asyncio.wait([reader])

    async def _read(self, stream: _Stream) -> None:
        pauses = backoff()
        try:
            while True:
                reason = await stream.run()
                if self._is_stopping:
                    return
                if stream.was_heard:
                    pauses.reset()
                if reason != _WIDENED:
                    self.limits = self._given_limits
                self._recognition.stream_reopened(asyncio.get_running_loop().time())
                self.observer.reconnected(reason)
                await asyncio.sleep(next(pauses))
        except ReactorError as failure:
            self._failure = failure
        except Exception as error:  # noqa: BLE001 - a task ends here: `receive` raises it
            self._failure = WorldError(f"the stream of {self.path} failed: {error!r}")
            self._failure.__cause__ = error
        self._news.set()


class _Stream:
    """The stream of a subscription, as often as it is opened."""

    def __init__(self, channel: Any, owner: Subscription) -> None:
        self._channel = channel
        self._owner = owner
        self._new_call = channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=_Request.SerializeToString,
            response_deserializer=parse_response,
        )
        self._client_id = str(uuid.uuid4())
        self._clock = asyncio.get_running_loop().time
        self._call: Any = None
        self._cut_because = ""
        self._heard = asyncio.Event()
        self._opened_at = self._listening_since = self._pinged_at = 0.0
        self._answers_pings = False
        #: Whether the broker said anything on the last stream.
        self.was_heard = False
        self.last_response = 0.0

    def is_up(self) -> bool:
        """Tell whether the broker has taken a stream."""
        call = self._call
        if call is None or call.done():
            return False
        # Google's emulator says nothing at all before the first message.
        is_old = self._clock() - self._opened_at > 1.0
        return self.was_heard or (is_old and self._channel.get_state() is ChannelConnectivity.READY)

    async def run(self) -> str:
        """Read one stream to its end, and say in a few words why it ended.

        Raises: UsageError or WorldError when another one would end the same way.
        """
        self._cut_because, self.was_heard = "", False
        self._opened_at = self._listening_since = self._pinged_at = self._clock()
        self._call = call = self._new_call(metadata=routed("subscription", self._owner.path))
        watchers = [asyncio.create_task(self._listen(call)), asyncio.create_task(self._watch(call))]
        try:
            await call.write(self._first_request())
            await self._read(call)
        except AioRpcError as error:
            return self._judge(error)
        except asyncio.CancelledError:
            # A call that was cut raises this too.
            if _is_being_cancelled():
                raise
            return self._cut_because or "it was closed here"
        finally:
            call.cancel()
            await cancel_all(*watchers)
            self._heard.set()
        return "the broker ended it"

    def cut(self, reason: str) -> None:
        """End the stream; another is opened."""
        if self._call is not None and not self._call.done():
            self._cut_because = reason
            self._call.cancel()

    async def wait_until_heard(self, seconds: float) -> None:
        """Wait until the broker took the stream or refused it, or the time is over."""
        await wait_within(seconds, self._heard.wait())

    async def finish(self) -> bool:
        """Tell the broker that we want no more: it ends the stream after what is on its way; False without a stream."""
        if self._call is None or self._call.done():
            return False
        await self._call.done_writing()
        return True

    def _first_request(self) -> Any:
        limits = self._owner.limits
        return _Request(
            subscription=self._owner.path,
            stream_ack_deadline_seconds=int(limits.ack_deadline),
            client_id=self._client_id,
            max_outstanding_messages=limits.max_messages,
            max_outstanding_bytes=limits.max_bytes,
            protocol_version=_PROTOCOL_VERSION,
        )

    async def _read(self, call: Any) -> None:
        owner = self._owner
        while True:
            if owner.is_full():
                await owner.has_room()
                self._listening_since = self._clock()
            response = await call.read()
            if response is EOF:
                return
            self.last_response = now = self._clock()
            if not self.was_heard:
                self._hear()
            if response.received_messages:
                owner.arrive(response, now)
            elif self._pinged_at > self._opened_at:
                self._answers_pings = True

    def _hear(self) -> None:
        if not self.was_heard:
            self.was_heard = True
            self._heard.set()
            self._owner.observer.stream_opened()

    async def _listen(self, call: Any) -> None:
        """Wait for the broker's headers, which come with the first response at the latest."""
        await call.initial_metadata()
        if not call.done():
            self._hear()

    async def _watch(self, call: Any) -> None:
        """Send heartbeats, and cut a stream that is stuck."""
        limits = self._owner.limits
        while True:
            await asyncio.sleep(min(limits.heartbeat, limits.quiet) / 2)
            self._cut_because = self._stuck(self._clock())
            if self._cut_because:
                call.cancel()
                return
            if self._clock() - self._pinged_at >= limits.heartbeat * 0.9:
                await self._ping(call)

    async def _ping(self, call: Any) -> None:
        self._pinged_at = self._clock()
        try:
            await asyncio.wait_for(call.write(_Request()), self._owner.limits.heartbeat / 2)
        except TimeoutError:
            self._cut_because = "a heartbeat could not be sent"
            call.cancel()
        except (AioRpcError, asyncio.InvalidStateError):
            return  # the reader learns it as well, and why

    def _stuck(self, now: float) -> str:
        """Say why the stream is taken for dead; empty while it is not."""
        limits = self._owner.limits
        if self._owner.is_full():
            return ""
        silent_since = max(self.last_response, self._listening_since)
        if self._answers_pings and self._pinged_at > silent_since and now - self._pinged_at >= limits.heartbeat / 2:
            return "the broker left a heartbeat without an answer"
        return f"nothing came for {limits.quiet:g} s" if now - silent_since >= limits.quiet else ""

    def _judge(self, error: AioRpcError) -> str:
        if error.code() in _FINAL:
            connection = self._owner.connection
            raise connection.failure(
                error, f"subscription {self._owner.path}", "pubsub.subscriptions.consume"
            ) from error
        return f"{error.code().name}: {error.details()}"


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
