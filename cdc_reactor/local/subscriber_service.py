"""google.pubsub.v1.Subscriber: subscriptions, pulling from them, snapshots, seek."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cdc_reactor.local import calls, definitions, limits, names, paging, protos
from cdc_reactor.local.broker import Subscription, open_consumer
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.faults import LOST, TRANSIENT, UNAVAILABLE, UNCONFIRMED, unavailable
from cdc_reactor.local.leases import Consumer
from cdc_reactor.local.names import Kind
from cdc_reactor.local.refusals import Code, Refused, invalid
from cdc_reactor.local.streams import Stream, encoded

NAME = "google.pubsub.v1.Subscriber"

#: How long a Pull that may wait does wait for a first message.
PULL_WAIT = 10.0
#: Some official clients take responses of at most 4 MiB.
PULL_BYTES = 3_500_000

INVALID_ACK_ID = "PERMANENT_FAILURE_INVALID_ACK_ID"
TRY_AGAIN = "TRANSIENT_FAILURE_SERVICE_UNAVAILABLE"


class SubscriberService:
    """The methods, each from its parsed request to its reply."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._broker = engine.broker

    def handlers(self) -> dict[str, Any]:
        """Return the handlers by method name."""
        methods = {
            "CreateSubscription": (protos.Subscription, self._create),
            "GetSubscription": (protos.GetSubscriptionRequest, self._get),
            "UpdateSubscription": (protos.UpdateSubscriptionRequest, self._update),
            "ListSubscriptions": (protos.ListSubscriptionsRequest, self._list),
            "DeleteSubscription": (protos.DeleteSubscriptionRequest, self._delete),
            "ModifyPushConfig": (protos.ModifyPushConfigRequest, self._modify_push_config),
            "Pull": (protos.PullRequest, self._pull),
            "CreateSnapshot": (protos.CreateSnapshotRequest, self._create_snapshot),
            "GetSnapshot": (protos.GetSnapshotRequest, self._get_snapshot),
            "ListSnapshots": (protos.ListSnapshotsRequest, self._list_snapshots),
            "UpdateSnapshot": (protos.UpdateSnapshotRequest, self._update_snapshot),
            "DeleteSnapshot": (protos.DeleteSnapshotRequest, self._delete_snapshot),
            "Seek": (protos.SeekRequest, self._seek),
        }
        limited = {
            "Acknowledge": (protos.AcknowledgeRequest, self._acknowledge),
            "ModifyAckDeadline": (protos.ModifyAckDeadlineRequest, self._modify_ack_deadline),
        }
        engine, check = self._engine, limits.check_ack_request
        handlers = {name: calls.unary(engine, parser, method) for name, (parser, method) in methods.items()}
        for name, (parser, method) in limited.items():
            handlers[name] = calls.unary(engine, parser, method, check_size=check)
        handlers["StreamingPull"] = calls.streaming(self._streaming_pull)
        return handlers

    def _subscription(self, name: str) -> Subscription:
        return self._broker.use(names.check(Kind.SUBSCRIPTION, name), self._engine.now())

    # ── subscriptions ──

    async def _create(self, request: Any) -> Any:
        definition, options = definitions.new_subscription(request)
        if options.dead_letter is not None:
            self._broker.topic(options.dead_letter.topic)
        self._broker.create_subscription(definition.name, definition.topic, options, definition)
        subscription = self._broker.use(definition.name, self._engine.now())
        await self._engine.confirmed()
        return definitions.echo_subscription(subscription)

    def _get(self, request: Any) -> Any:
        return definitions.echo_subscription(self._subscription(request.subscription))

    async def _update(self, request: Any) -> Any:
        subscription = self._subscription(request.subscription.name)
        wanted = definitions.updated(subscription.definition, request.subscription, request.update_mask.paths)
        return await self._redefine(subscription, wanted)

    async def _modify_push_config(self, request: Any) -> Any:
        subscription = self._subscription(request.subscription)
        wanted = definitions.with_push_config(subscription.definition, request.push_config)
        await self._redefine(subscription, wanted)
        return protos.Empty()

    async def _redefine(self, subscription: Subscription, wanted: Any) -> Any:
        definition, options = definitions.complete_subscription(wanted)
        if options.dead_letter is not None and options.dead_letter != subscription.options.dead_letter:
            self._broker.topic(options.dead_letter.topic)
        self._broker.update_subscription(subscription, options, definition)
        self._engine.settle(subscription)
        await self._engine.confirmed()
        return definitions.echo_subscription(subscription)

    def _list(self, request: Any) -> Any:
        prefix = names.check_project(request.project) + "/"
        owned = [one for one in self._broker.subscriptions.values() if one.name.startswith(prefix)]
        found, token = paging.page(owned, lambda s: s.name, size=request.page_size, token=request.page_token)
        shown = map(definitions.echo_subscription, found)
        return protos.ListSubscriptionsResponse(subscriptions=shown, next_page_token=token)

    async def _delete(self, request: Any) -> Any:
        self._broker.delete_subscription(names.check(Kind.SUBSCRIPTION, request.subscription))
        await self._engine.confirmed()
        return protos.Empty()

    # ── messages ──

    async def _streaming_pull(self, requests: Any, context: Any) -> None:
        try:
            await Stream(self._engine, context).run(requests)
        except Refused as refused:
            await calls.abort(context, refused)

    async def _pull(self, request: Any) -> bytes:
        subscription = self._subscription(request.subscription)
        if request.max_messages <= 0:
            raise invalid(f"Invalid max_messages given (max_messages={request.max_messages}): it must be at least 1.")
        woken = asyncio.Event()
        wanted = min(request.max_messages, limits.MAX_PULL_MESSAGES)
        consumer = Consumer(subscription.options.ack_deadline, max_messages=wanted, wake=woken.set)
        open_consumer(subscription, consumer)
        try:
            parts = self._taken(subscription, consumer)
            if not parts and not request.return_immediately:
                parts = await self._wait(subscription, consumer, woken)
        finally:
            subscription.backlog.detach(consumer)
        if parts and self._engine.faults.delay:
            await asyncio.sleep(self._engine.faults.delay)
        return b"".join(parts)

    async def _wait(self, subscription: Subscription, consumer: Consumer, woken: asyncio.Event) -> list[bytes]:
        ended: list[Refused] = []

        def end(reason: Refused) -> None:
            ended.append(reason)
            woken.set()

        self._engine.pulls.add(end)
        try:
            async with asyncio.timeout(PULL_WAIT):
                while not (parts := self._taken(subscription, consumer)):
                    reason = ended[0] if ended else subscription.ended
                    if reason is not None:
                        raise reason
                    woken.clear()
                    await woken.wait()
        except TimeoutError:
            return []
        finally:
            self._engine.pulls.discard(end)
        return parts

    def _taken(self, subscription: Subscription, consumer: Consumer) -> list[bytes]:
        leases = subscription.backlog.take(consumer, self._engine.now(), max_bytes=PULL_BYTES)
        self._engine.settle(subscription)
        return encoded(leases, tells_attempts=subscription.options.dead_letter is not None)

    async def _acknowledge(self, request: Any) -> Any:
        subscription = self._subscription(request.subscription)
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        fault = self._engine.faults.ack_request()
        if fault in (LOST, UNAVAILABLE, TRANSIENT):
            return _answer(fault, request.ack_ids)
        dead = subscription.backlog.acknowledge(request.ack_ids, self._engine.now())
        self._engine.settle(subscription)
        if subscription.options.is_exactly_once:
            await self._engine.confirmed()
        _check_dead(subscription, dead)
        if fault == UNCONFIRMED:
            raise unavailable("The confirmation was lost")
        return protos.Empty()

    def _modify_ack_deadline(self, request: Any) -> Any:
        subscription = self._subscription(request.subscription)
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        limits.check_modified_deadline(request.ack_deadline_seconds)
        dead = subscription.backlog.modify(request.ack_ids, request.ack_deadline_seconds, self._engine.now())
        self._engine.settle(subscription)
        _check_dead(subscription, dead)
        return protos.Empty()

    # ── snapshots and seek ──

    async def _create_snapshot(self, request: Any) -> Any:
        definition = definitions.new_snapshot(request)
        subscription = self._subscription(request.subscription)
        snapshot = self._broker.create_snapshot(request.name, subscription, definition, self._engine.now())
        await self._engine.confirmed()
        return definitions.echo_snapshot(snapshot)

    def _get_snapshot(self, request: Any) -> Any:
        return definitions.echo_snapshot(self._broker.snapshot(names.check(Kind.SNAPSHOT, request.snapshot)))

    def _list_snapshots(self, request: Any) -> Any:
        prefix = names.check_project(request.project) + "/"
        owned = [one for one in self._broker.snapshots.values() if one.name.startswith(prefix)]
        found, token = paging.page(owned, lambda s: s.name, size=request.page_size, token=request.page_token)
        shown = map(definitions.echo_snapshot, found)
        return protos.ListSnapshotsResponse(snapshots=shown, next_page_token=token)

    async def _update_snapshot(self, request: Any) -> Any:
        snapshot = self._broker.snapshot(names.check(Kind.SNAPSHOT, request.snapshot.name))
        wanted = definitions.updated(snapshot.definition, request.snapshot, request.update_mask.paths)
        limits.check_labels(wanted.labels)
        expires = definitions.seconds_of(wanted.expire_time) if wanted.HasField("expire_time") else snapshot.expires
        self._broker.update_snapshot(snapshot, wanted, expires)
        await self._engine.confirmed()
        return definitions.echo_snapshot(snapshot)

    async def _delete_snapshot(self, request: Any) -> Any:
        self._broker.delete_snapshot(names.check(Kind.SNAPSHOT, request.snapshot))
        await self._engine.confirmed()
        return protos.Empty()

    async def _seek(self, request: Any) -> Any:
        subscription = self._subscription(request.subscription)
        if subscription.ended is not None:
            raise subscription.ended
        match request.WhichOneof("target"):
            case "time":
                now = self._engine.now()
                self._broker.seek_to_time(subscription, definitions.seconds_of(request.time), now)
            case "snapshot":
                snapshot = self._broker.snapshot(names.check(Kind.SNAPSHOT, request.snapshot))
                self._broker.seek_to_snapshot(subscription, snapshot)
            case _:
                raise invalid("The seek has no target: a time or a snapshot is needed.")
        await self._engine.confirmed()
        return protos.SeekResponse()


def _answer(fault: str, ack_ids: Sequence[str]) -> Any:
    """Answer an ack request that is forgotten."""
    if fault == UNAVAILABLE:
        raise unavailable("The acknowledgement was refused")
    if fault == TRANSIENT:
        raise _ack_failure(ack_ids, TRY_AGAIN)
    return protos.Empty()


def _check_dead(subscription: Subscription, dead: Sequence[str]) -> None:
    """Complain of ack ids that count no more: all of them with exactly-once, else only what was never an ack id."""
    if not dead:
        return
    if subscription.options.is_exactly_once:
        raise _ack_failure(dead, INVALID_ACK_ID)
    for ack_id in dead:
        if not subscription.backlog.is_ack_id(ack_id):
            raise invalid(f"You have passed an invalid ack ID to the service (ack_id={ack_id[:200]}).")


def _ack_failure(ack_ids: Sequence[str], reason: str) -> Refused:
    return Refused(
        Code.INVALID_ARGUMENT,
        "Some acknowledgement ids in the request were invalid. This could be because the acknowledgement ids have "
        "expired or the acknowledgement ids were malformed.",
        failures=dict.fromkeys(ack_ids, reason),
    )
