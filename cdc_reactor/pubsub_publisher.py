"""Messages to topics: in batches, each ordering key in order, confirmed before `publish` returns.

What cannot be sent is refused before anything is; what fails for a reason that may pass is sent again for a while.
It never drops a message and never lets one of a key overtake another. Everything belongs to one event loop. Neighbours:
`pubsub_connection` has the channel, `pubsub` receives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from google.pubsub_v1 import types
from grpc import StatusCode
from grpc.aio import AioRpcError

from cdc_reactor.errors import MessageRefused, PublishError
from cdc_reactor.messages import Message
from cdc_reactor.pubsub_connection import PUBLISH, RETRYABLE, Connection, backoff

# https://cloud.google.com/pubsub/quotas#resource_limits; a MB there is a million bytes.
_MAX_REQUEST_BYTES = 10_000_000
_MAX_REQUEST_MESSAGES = 1000
_MAX_ATTRIBUTES = 100
_MAX_KEY_BYTES = 256
_MAX_VALUE_BYTES = 1024
_MAX_ORDERING_KEY_BYTES = 1024

#: Protobuf's tag and length of a message in a request, at most.
_FRAME_BYTES = 6
_REQUESTS_IN_FLIGHT = 32
_REQUESTS_WITHOUT_KEY = 8
_CALL_TIMEOUT = 15.0

_PubsubMessage: Any = types.PubsubMessage.pb()
_Request: Any = types.PublishRequest.pb()


class Publisher:
    """Publishes to any topic; not thread-safe. Close it when done.

    Messages wait up to `delay` seconds for company, and are sent again until `timeout` seconds have
    passed. A request has the messages of one ordering key only, as the service wants it.
    """

    def __init__(self, connection: Connection, *, delay: float = 0.005, timeout: float = 60.0) -> None:
        self._connection = connection
        self._delay = delay
        self._timeout = timeout
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._slots = asyncio.Semaphore(_REQUESTS_IN_FLIGHT)
        self._is_closed = False

    async def publish(self, topic: str, messages: Sequence[Message]) -> list[str]:
        """Publish messages, in order within each ordering key; return their ids once the broker confirmed all of them.

        After a failure nothing behind it of the same key is sent, so that one may simply publish again; messages of
        other keys, and those before it, may be confirmed already.

        Raises: MessageRefused when a message breaks a limit (nothing is sent then) or the broker will never take it;
        PublishError when messages could not be confirmed.
        """
        path = self._connection.topic_path(topic)
        encoded = [_encoded(path, m) for m in messages]
        if self._is_closed:
            raise PublishError(f"{len(messages)} messages for topic {path} came after the publisher was closed")
        if not messages:
            return []
        call = _Call(len(messages))
        for index, message in enumerate(encoded):
            self._lane(path, message.ordering_key).add(_Waiting(call, index, message))
        return await call.outcome

    def check(self, topic: str, message: Message) -> None:
        """Raise MessageRefused for what `publish` would refuse."""
        _encoded(self._connection.topic_path(topic), message)

    async def close(self, within: float = 5.0) -> None:
        """Send what waits, for so many seconds at most; then calls that are not confirmed raise PublishError."""
        self._is_closed = True
        lanes = list(self._lanes.values())
        tasks = [task for lane in lanes for task in lane.hurry()]
        if tasks:
            await asyncio.wait(tasks, timeout=within)
        # First what waits, or an ended task would begin with it anew.
        for lane in lanes:
            lane.fail_waiting(_closed(lane.topic))
        tasks = [task for lane in lanes for task in lane.hurry()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, topic: str, batch: list[_Waiting]) -> bool:
        """Send one request until its messages are confirmed, or have failed; return whether all are confirmed."""
        try:
            ids = await self._confirmed_ids(topic, [w.message for w in batch])
        except AioRpcError as error:
            if error.code() is StatusCode.INVALID_ARGUMENT and len(batch) > 1:
                # One bad message must not take others with it, which may be of other calls.
                half = len(batch) // 2
                return await self._send_both(topic, batch[:half], batch[half:])
            _fail(batch, self._failure(error, topic, batch))
            return False
        except asyncio.CancelledError:
            _fail(batch, _closed(topic))
            raise
        for waiting, message_id in zip(batch, ids, strict=True):
            waiting.call.confirm(waiting.index, message_id)
        return True

    async def _send_both(self, topic: str, first: list[_Waiting], second: list[_Waiting]) -> bool:
        try:
            is_sent = await self.send(topic, first)
        except asyncio.CancelledError:
            _fail(second, _closed(topic))
            raise
        if not is_sent and second[0].message.ordering_key:
            _fail(second, _left_behind(topic))
            return False
        return await self.send(topic, second) and is_sent

    async def _confirmed_ids(self, topic: str, messages: list[Any]) -> list[str]:
        """Send one request again and again; raise AioRpcError once that will not help, or the deadline has passed."""
        request = _Request(topic=topic, messages=messages)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._timeout
        for pause in backoff():
            within = max(0.1, min(_CALL_TIMEOUT, give_up_at - loop.time()))
            try:
                async with self._slots:
                    response = await self._connection.call(PUBLISH, request, within=within)
                return list(response.message_ids)
            except AioRpcError as error:
                if error.code() not in RETRYABLE or loop.time() + pause >= give_up_at:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("backoff never ends")

    def _failure(self, error: AioRpcError, topic: str, batch: list[_Waiting]) -> PublishError | MessageRefused:
        why = self._connection.failure(error, f"topic {topic}", "pubsub.topics.publish")
        if error.code() is StatusCode.INVALID_ARGUMENT:
            return MessageRefused(
                f"topic {topic} does not take a message of {batch[0].message.ByteSize():,} bytes: {why}"
            )
        failure = PublishError(f"{len(batch)} messages are not published: {why}")
        failure.__cause__ = why
        return failure

    def _lane(self, topic: str, ordering_key: str) -> _Lane:
        lane = self._lanes.get((topic, ordering_key))
        if lane is None:
            lane = self._lanes[topic, ordering_key] = _Lane(self, topic, ordering_key, self._delay)
        return lane

    def forget(self, lane: _Lane) -> None:
        """Drop a lane that has nothing to do."""
        self._lanes.pop((lane.topic, lane.ordering_key), None)


class _Lane:
    """What waits for one topic with one ordering key: one request at a time, or several where the key is empty."""

    def __init__(self, publisher: Publisher, topic: str, ordering_key: str, delay: float) -> None:
        self.topic = topic
        self.ordering_key = ordering_key
        self._publisher = publisher
        self._delay = delay
        self._width = 1 if ordering_key else _REQUESTS_WITHOUT_KEY
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: _Waiting) -> None:
        """Add a message; it is sent when there are enough, or in a little while."""
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size_bytes
        if len(self._waiting) >= _MAX_REQUEST_MESSAGES or self._waiting_bytes >= _MAX_REQUEST_BYTES:
            self._start()
        elif self._timer is None and not self._tasks:
            self._timer = asyncio.get_running_loop().call_later(self._delay, self._start)

    def hurry(self) -> list[asyncio.Task[None]]:
        """Send at once what waits; return the tasks that do it."""
        if self._waiting:
            self._start()
        return list(self._tasks)

    def fail_waiting(self, error: PublishError) -> None:
        """Fail what was not sent."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        _fail(waiting, error)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._tasks) < self._width:
            task = asyncio.create_task(self._send())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._waiting:
            self._start()
        elif not self._tasks:
            self._publisher.forget(self)

    async def _send(self) -> None:
        while batch := self._take():
            is_sent = await self._publisher.send(self.topic, batch)
            if not is_sent and self.ordering_key:
                # What came later may depend on what failed: whoever waits for it shall decide anew.
                self.fail_waiting(_left_behind(self.topic))

    def _take(self) -> list[_Waiting]:
        """Take as much as fits a request, and nothing that nobody waits for any more."""
        batch: list[_Waiting] = []
        room = _MAX_REQUEST_BYTES - len(self.topic) - _FRAME_BYTES
        while self._waiting and len(batch) < _MAX_REQUEST_MESSAGES and self._waiting[0].size_bytes <= room:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size_bytes
            if not waiting.call.outcome.done():
                room -= waiting.size_bytes
                batch.append(waiting)
        return batch


class _Call:
    """One call of `publish`: over when each of its messages is confirmed or has failed."""

    def __init__(self, messages: int) -> None:
        self.outcome: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._ids = [""] * messages
        self._open = messages
        self._error: PublishError | MessageRefused | None = None

    def confirm(self, index: int, message_id: str) -> None:
        """Note the id of a message."""
        self._ids[index] = message_id
        self._close_one()

    def fail(self, error: PublishError | MessageRefused) -> None:
        """Note that a message failed; of several errors one that will never pass is told first."""
        if self._error is None or (isinstance(error, MessageRefused) and not isinstance(self._error, MessageRefused)):
            self._error = error
        self._close_one()

    def _close_one(self) -> None:
        self._open -= 1
        if self._open or self.outcome.done():
            return
        if self._error is None:
            self.outcome.set_result(self._ids)
        else:
            self.outcome.set_exception(self._error)


class _Waiting:
    """A message of a call, encoded."""

    __slots__ = ("call", "index", "message", "size_bytes")

    def __init__(self, call: _Call, index: int, message: Any) -> None:
        self.call = call
        self.index = index
        self.message = message
        self.size_bytes = message.ByteSize() + _FRAME_BYTES


def _fail(batch: list[_Waiting], error: PublishError | MessageRefused) -> None:
    for waiting in batch:
        waiting.call.fail(error)


def _left_behind(topic: str) -> PublishError:
    return PublishError(f"not sent to topic {topic}, because a message before it with the same ordering key failed")


def _closed(topic: str) -> PublishError:
    return PublishError(f"the publisher was closed before topic {topic} confirmed what was sent")


def _encoded(topic: str, message: Message) -> Any:
    """Return a message as protobuf, or raise MessageRefused."""
    _check(topic, message)
    try:
        encoded = _PubsubMessage(
            data=message.data, attributes=dict(message.attributes), ordering_key=message.ordering_key
        )
    except (TypeError, UnicodeEncodeError, ValueError) as error:
        raise _refused(topic, f"it cannot be encoded: {error}") from error
    size = encoded.ByteSize()
    limit = _MAX_REQUEST_BYTES - len(topic) - 2 * _FRAME_BYTES
    if size > limit:
        raise _refused(topic, f"it has {size:,} bytes and the limit is {limit:,}")
    return encoded


def _check(topic: str, message: Message) -> None:
    if not message.data and not message.attributes:
        raise _refused(topic, "it has neither data nor attributes, of which one is needed")
    if len(message.attributes) > _MAX_ATTRIBUTES:
        raise _refused(topic, f"it has {len(message.attributes)} attributes and the limit is {_MAX_ATTRIBUTES}")
    _check_length(topic, "an ordering key", message.ordering_key, _MAX_ORDERING_KEY_BYTES)
    for key, value in message.attributes.items():
        _check_length(topic, f"an attribute's name ({key[:40]!r}…)", key, _MAX_KEY_BYTES)
        _check_length(topic, f"the attribute {key!r}", value, _MAX_VALUE_BYTES)


def _check_length(topic: str, what: str, text: str, limit: int) -> None:
    # Four bytes are the most that UTF-8 needs for a character, so that few texts must be encoded to be measured.
    if len(text) * 4 > limit and (size := len(text.encode(errors="replace"))) > limit:
        raise _refused(topic, f"{what} has {size:,} bytes and the limit is {limit:,}")


def _refused(topic: str, why: str) -> MessageRefused:
    return MessageRefused(f"a message for topic {topic} cannot be published: {why}")
