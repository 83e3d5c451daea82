"""The broker that every consumer of the Pub/Sub benchmark is fed by: our local one, in a process of its own.

It keeps everything in memory. A backlog is published once for each subscription and delivered anew in every round, by
a seek to the time before it. What was acknowledged is what the broker counts, so that no consumer is asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.pubsub_v1 import types

from benchmarks.pubsub_messages import Form
from benchmarks.pubsub_peers import PROJECT
from benchmarks.pubsub_processes import Process
from cdc_reactor.local.broker_admin import BrokerAdmin

REPOSITORY = Path(__file__).resolve().parents[1]

_START_SECONDS = 30.0
_PUBLISH_SECONDS = 120.0


class Feed:
    """A broker; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.pubsub_broker"]
        self.process = Process(command, environ={"PYTHONPATH": str(REPOSITORY)}, folder=folder, name="broker")
        self.address = self.process.wait_for(r"listening on (\S+:\d+)", _START_SECONDS)[1]
        self._admin = BrokerAdmin(self.address)
        self._channel = grpc.insecure_channel(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._channel.close()
        self._admin.close()
        self.process.stop()

    def create(self, subscription: str) -> None:
        """Create an ordered subscription that keeps what is acknowledged, and a topic of the same name for it alone."""
        self._send("Publisher/CreateTopic", types.Topic.pb()(name=_topic(subscription)))
        request = types.Subscription.pb()(
            name=_path(subscription),
            topic=_topic(subscription),
            ack_deadline_seconds=60,
            enable_message_ordering=True,
            retain_acked_messages=True,
        )
        self._send("Subscriber/CreateSubscription", request)

    def publish(self, subscription: str, form: Form, count: int) -> None:
        """Publish the first so many messages of a form for a subscription."""
        line = f"{subscription} {count} {form.name}"
        self.process.tell(line)
        self.process.wait_for(f"published {line}", _PUBLISH_SECONDS)

    def rewind(self, subscription: str) -> None:
        """Let everything of a subscription be delivered again."""
        request = types.SeekRequest.pb()(subscription=_path(subscription))
        request.time.FromSeconds(1)
        self._send("Subscriber/Seek", request)

    def remove(self, subscription: str) -> None:
        """Delete a subscription and the topic of its name, and with it the backlog."""
        self._send(
            "Subscriber/DeleteSubscription", types.DeleteSubscriptionRequest.pb()(subscription=_path(subscription))
        )
        self._send("Publisher/DeleteTopic", types.DeleteTopicRequest.pb()(topic=_topic(subscription)))

    def acked(self, subscription: str) -> int:
        """Say how many acknowledgements the broker has taken, since the subscription is there."""
        return self._admin.subscription(_path(subscription))["acked"]

    def limit_responses(self, max_messages: int, max_bytes: int) -> None:
        """Say how much a response on a stream may have."""
        self._admin.configure(max_messages=max_messages, max_bytes=max_bytes)

    def _send(self, method: str, request: Any) -> None:
        """Call a method of google.pubsub.v1; what it answers says nothing that we need."""
        call = self._channel.unary_unary(
            f"/google.pubsub.v1.{method}", request_serializer=type(request).SerializeToString
        )
        call(request, timeout=60)


def _topic(subscription: str) -> str:
    return f"projects/{PROJECT}/topics/{subscription}"


def _path(subscription: str) -> str:
    return f"projects/{PROJECT}/subscriptions/{subscription}"
