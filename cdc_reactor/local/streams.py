"""One StreamingPull: what goes out as fast as it may, what comes in, and how it ends.

The writer sleeps until its consumer is woken. Every response tells the properties of the subscription, as the service's
do; with exactly-once delivery the first comes at once, so that clients know. A stream ends when its client half-closes,
its subscription is deleted or detached, or the broker is told to reset it; what it holds stays leased.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cache
from math import inf
from typing import Any

from cdc_reactor.local import calls, limits, names, protos, wire
from cdc_reactor.local.broker import Subscription, open_consumer
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.faults import LOST, TRANSIENT, UNAVAILABLE, UNCONFIRMED, unavailable
from cdc_reactor.local.leases import Consumer, Lease
from cdc_reactor.local.names import Kind
from cdc_reactor.local.refusals import Refused, invalid


def encoded(leases: Iterable[Lease], *, tells_attempts: bool) -> list[bytes]:
    """Return the parts of a StreamingPullResponse or PullResponse with these deliveries."""
    parts: list[bytes] = []
    add, head = parts.extend, wire.head
    for lease in leases:
        ack_id = lease.ack_id.encode()
        frame = lease.message.frame
        if tells_attempts:
            attempt = wire.attempt(lease.attempt)
            add((head(len(ack_id), len(frame) + len(attempt)), ack_id, frame, attempt))
        else:
            add((head(len(ack_id), len(frame)), ack_id, frame))
    return parts


class Stream:
    """A StreamingPull from its first request to its end; `run` it once."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine = engine
        self._context = context
        self._woken = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirmations: list[bytes] = []
        self._answers_heartbeats = False
        self._heartbeats = 0

    async def run(self, requests: Any) -> None:
        """Serve the stream; raises Refused with what it is to end with."""
        self._engine.admit()
        self._requests = requests
        first = await anext(requests, None)
        if first is None:
            raise invalid("A StreamingPull begins with a request that names its subscription.")
        request = _parsed(first)
        # Version 1: each empty request is answered by a response (google-cloud-go, pull request 13457).
        self._answers_heartbeats = request.protocol_version >= 1
        self._subscription = self._begin(request)
        backlog = self._subscription.backlog
        self._engine.streams.add(self._end)
        timer = self._limit_life(self._engine.faults.stream_life)
        try:
            await self._context.send_initial_metadata(())
            await self._settle(request)
            await self._serve()
        finally:
            if timer is not None:
                timer.cancel()
            self._engine.streams.discard(self._end)
            backlog.detach(self._consumer)

    def _begin(self, request: Any) -> Subscription:
        subscription = self._engine.broker.use(names.check(Kind.SUBSCRIPTION, request.subscription), self._engine.now())
        limits.check_ack_deadline(request.stream_ack_deadline_seconds)
        self._consumer = Consumer(
            float(request.stream_ack_deadline_seconds),
            max_messages=_limit(request.max_outstanding_messages),
            max_bytes=_limit(request.max_outstanding_bytes),
            wake=self._woken.set,
        )
        open_consumer(subscription, self._consumer)
        return subscription

    def _limit_life(self, seconds: float) -> asyncio.TimerHandle | None:
        if seconds == inf:
            return None
        return asyncio.get_running_loop().call_later(seconds, self._end, unavailable("The stream is over"))

    def _end(self, reason: Refused) -> None:
        if not self._ended.done():
            self._ended.set_exception(reason)

    async def _serve(self) -> None:
        tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._write())}
        try:
            done, _ = await asyncio.wait({*tasks, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for ended in done:
            ended.result()

    # ── out ──

    async def _write(self) -> None:
        if self._subscription.options.is_exactly_once:
            await self._context.write(self._properties())
        while True:
            self._woken.clear()
            if parts := self._next_parts():
                if self._engine.faults.delay:
                    await asyncio.sleep(self._engine.faults.delay)
                parts.append(self._properties())
                self._heartbeats = 0
                await self._context.write(b"".join(parts))
            elif self._heartbeats:
                self._heartbeats = 0
                await self._context.write(self._properties())
            elif self._subscription.ended is not None:
                raise self._subscription.ended
            else:
                await self._woken.wait()

    def _properties(self) -> bytes:
        options = self._subscription.options
        return _properties(is_exactly_once=options.is_exactly_once, is_ordered=options.is_ordered)

    def _next_parts(self) -> list[bytes]:
        confirmations, self._confirmations = self._confirmations, []
        engine, subscription = self._engine, self._subscription
        leases = subscription.backlog.take(
            self._consumer,
            engine.now(),
            max_messages=engine.responses.max_messages,
            max_bytes=engine.responses.max_bytes,
        )
        if leases:
            engine.settle(subscription)
            return encoded(leases, tells_attempts=subscription.options.dead_letter is not None) + confirmations
        return confirmations

    # ── in ──

    async def _read(self) -> None:
        async for raw in self._requests:
            limits.check_ack_request(len(raw))
            if not raw and self._answers_heartbeats:
                self._heartbeats += 1
                self._woken.set()
            request = _parsed(raw)
            if request.subscription or request.max_outstanding_messages or request.max_outstanding_bytes:
                raise invalid("Only the first request of a StreamingPull names its subscription and flow control.")
            if request.stream_ack_deadline_seconds:
                limits.check_ack_deadline(request.stream_ack_deadline_seconds)
                self._consumer.deadline = float(request.stream_ack_deadline_seconds)
            await self._settle(request)

    async def _settle(self, request: Any) -> None:
        if len(request.modify_deadline_seconds) != len(request.modify_deadline_ack_ids):
            raise invalid("modify_deadline_seconds and modify_deadline_ack_ids must have the same length.")
        for ack_id in (*request.ack_ids[:1], *request.modify_deadline_ack_ids[:1]):
            self._check(ack_id)
        if request.ack_ids:
            await self._acknowledge(list(request.ack_ids))
        if request.modify_deadline_ack_ids:
            self._modify(request)

    async def _acknowledge(self, ack_ids: list[str]) -> None:
        fault = self._engine.faults.ack_request()
        if fault in (LOST, UNAVAILABLE):
            if fault == UNAVAILABLE:
                raise unavailable("The acknowledgement was refused")
            return
        if fault == TRANSIENT:
            self._confirm("acknowledge_confirmation", temporary_failed_ack_ids=ack_ids)
            return
        invalid_ids = self._subscription.backlog.acknowledge(ack_ids, self._engine.now())
        self._engine.settle(self._subscription)
        if fault == UNCONFIRMED:
            raise unavailable("The confirmation was lost")
        if self._subscription.options.is_exactly_once:
            await self._engine.confirmed()
            valid = [ack_id for ack_id in ack_ids if ack_id not in set(invalid_ids)]
            self._confirm("acknowledge_confirmation", ack_ids=valid, invalid_ack_ids=invalid_ids)

    def _modify(self, request: Any) -> None:
        by_seconds: dict[int, list[str]] = {}
        for ack_id, seconds in zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True):
            limits.check_modified_deadline(seconds)
            by_seconds.setdefault(seconds, []).append(ack_id)
        invalid_ids: set[str] = set()
        for seconds, ack_ids in by_seconds.items():
            invalid_ids.update(self._subscription.backlog.modify(ack_ids, seconds, self._engine.now()))
        self._engine.settle(self._subscription)
        if self._subscription.options.is_exactly_once:
            valid = [ack_id for ack_id in request.modify_deadline_ack_ids if ack_id not in invalid_ids]
            self._confirm("modify_ack_deadline_confirmation", ack_ids=valid, invalid_ack_ids=sorted(invalid_ids))

    def _check(self, ack_id: str) -> None:
        """Refuse what was never an ack id; a look at the first of a request finds a client that sends such."""
        if not self._subscription.backlog.is_ack_id(ack_id):
            raise invalid(f"You have passed an invalid ack ID to the service (ack_id={ack_id[:200]}).")

    def _confirm(self, field: str, **ack_ids: Iterable[str]) -> None:
        if self._subscription.options.is_exactly_once:
            response = protos.StreamingPullResponse(**{field: ack_ids})
            self._confirmations.append(bytes(response.SerializeToString()))
            self._woken.set()


def _parsed(raw: bytes) -> Any:
    return calls.parse(protos.StreamingPullRequest, raw)


def _limit(wanted: int) -> float:
    """Read a limit of flow control, where 0 and less mean none."""
    return float(wanted) if wanted > 0 else inf


@cache
def _properties(*, is_exactly_once: bool, is_ordered: bool) -> bytes:
    response = protos.StreamingPullResponse()
    response.subscription_properties.exactly_once_delivery_enabled = is_exactly_once
    response.subscription_properties.message_ordering_enabled = is_ordered
    return bytes(response.SerializeToString())
