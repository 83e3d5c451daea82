"""The way to Pub/Sub: endpoint, credentials, channels, and the few management calls that a start needs.

On the raw protobuf classes of google-cloud-pubsub, because its wrapped messages cost more than all the rest of a
delivery, and on channels of our own, because those that its clients build where PUBSUB_EMULATOR_HOST is set receive 4
MiB at most. Nothing here reads the environment, except Google's own search for credentials. Neighbours: `pubsub`
receives, `pubsub_publisher` sends.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

import google.auth
import grpc
import msgspec
from google.api_core import grpc_helpers_async
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.pubsub_v1 import types
from grpc import StatusCode
from grpc.aio import AioRpcError

from cdc_reactor.errors import ReactorError, UsageError, WorldError

_SERVICE = "pubsub.googleapis.com:443"
_SCOPES = ("https://www.googleapis.com/auth/pubsub",)

#: About 100 streams fit a connection (DESIGN §6.6); what exceeds them hangs without a word.
STREAMS_A_CHANNEL = 80

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # With exactly-once delivery, a refused request answers a line of metadata for each of its ack ids.
    ("grpc.max_metadata_size", 4 * 1024 * 1024),
    # A response of 250 messages in a few frames instead of dozens.
    ("grpc.http2.max_frame_size", 4 * 1024 * 1024),
    # A connection that died without a word is noticed after 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's own backoff goes up to two minutes, and a connection attempt takes up to 20 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Without it, channels to one address share one connection, and its limit of streams.
    ("grpc.use_local_subchannel_pool", 1),
)

#: Statuses after which the same request may succeed (https://cloud.google.com/pubsub/docs/reference/error-codes).
RETRYABLE = frozenset(
    {
        StatusCode.ABORTED,
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.INTERNAL,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNAVAILABLE,
        StatusCode.UNKNOWN,
    }
)

#: How a plugin for credentials says, with UNAVAILABLE, that it got no token (grpc, _plugin_wrapping.py).
_NO_TOKEN = "Getting metadata from plugin failed"  # noqa: S105 - a message, no password
_LOGIN = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to a key file, "
    "or set PUBSUB_EMULATOR_HOST for a local broker (`cdc-reactor broker`)"
)


class SubscriptionInfo(msgspec.Struct, frozen=True):
    """What the broker says of a subscription; `topic` and `dead_letter_topic` are full names, or empty."""

    name: str
    topic: str
    ack_deadline: int
    ordering: bool
    exactly_once: bool
    dead_letter_topic: str
    filter: str


class Method(NamedTuple):
    """A unary method of the service: its path, and which field of a request says where to route it."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    route: str


def _method(name: str, request: Any, response: Any = None, *, route: str) -> Method:
    parse = bytes if response is None else response.pb().FromString
    return Method(f"/google.pubsub.v1.{name}", request.pb().SerializeToString, parse, route)


_GET_SUBSCRIPTION = _method(
    "Subscriber/GetSubscription", types.GetSubscriptionRequest, types.Subscription, route="subscription"
)
CREATE_SUBSCRIPTION = _method("Subscriber/CreateSubscription", types.Subscription, types.Subscription, route="name")
_GET_TOPIC = _method("Publisher/GetTopic", types.GetTopicRequest, types.Topic, route="topic")
_CREATE_TOPIC = _method("Publisher/CreateTopic", types.Topic, types.Topic, route="name")
ACKNOWLEDGE = _method("Subscriber/Acknowledge", types.AcknowledgeRequest, route="subscription")
MODIFY_ACK_DEADLINE = _method("Subscriber/ModifyAckDeadline", types.ModifyAckDeadlineRequest, route="subscription")
PUBLISH = _method("Publisher/Publish", types.PublishRequest, types.PublishResponse, route="topic")


class Connection:
    """Channels to one Pub/Sub, for one project; all of it on one event loop. Close it when done.

    `address` is what people are told of it.
    """

    def __init__(self, project: str, address: str, *, new_channel: Callable[[], Any], patience: float = 3.0) -> None:
        self.project = project
        self.address = address
        self._new_channel = new_channel
        self._patience = patience
        self._unary = new_channel()
        self._calls: dict[str, Any] = {}
        self._stream_channels: list[StreamChannel] = []

    @classmethod
    async def open(
        cls,
        project: str | None = None,
        *,
        emulator_host: str | None = None,
        endpoint: str | None = None,
        patience: float = 3.0,
    ) -> Connection:
        """Make ready to talk to a local broker at `emulator_host`, or to the service with the machine's credentials.

        `endpoint` is a regional endpoint, as in `europe-west1-pubsub.googleapis.com:443`. Without a `project`, that of
        the credentials is taken. Management calls are tried for `patience` seconds. Nothing is sent yet.

        Raises: UsageError when there are no credentials, or nobody says which project.
        """
        if emulator_host:
            address = emulator_host.removeprefix("http://").rstrip("/")
            new_channel: Callable[[], Any] = partial(grpc.aio.insecure_channel, address, options=_CHANNEL_OPTIONS)
            return cls(_named(project), address, new_channel=new_channel, patience=patience)
        # Looking for credentials may ask a metadata server, and waits for it.
        credentials, own_project = await asyncio.to_thread(_credentials)
        address = endpoint or _SERVICE
        address = address if ":" in address else f"{address}:443"
        new_channel = partial(_secure_channel, address, credentials)
        return cls(_named(project or own_project), address, new_channel=new_channel, patience=patience)

    def subscription_path(self, name: str) -> str:
        """Complete a short name; a full one may be of another project."""
        return name if "/" in name else f"projects/{self.project}/subscriptions/{name}"

    def topic_path(self, name: str) -> str:
        """Complete a short name; a full one may be of another project."""
        return name if "/" in name else f"projects/{self.project}/topics/{name}"

    async def subscription(self, name: str) -> SubscriptionInfo:
        """Ask what a subscription is like.

        Raises: UsageError when there is none, or we may not look; WorldError when nothing answers.
        """
        path = self.subscription_path(name)
        try:
            found = await self.patient_call(_GET_SUBSCRIPTION, types.GetSubscriptionRequest.pb()(subscription=path))
        except AioRpcError as error:
            raise self.failure(error, f"subscription {path}", "pubsub.subscriptions.get") from error
        return SubscriptionInfo(
            name=found.name,
            topic=found.topic,
            ack_deadline=found.ack_deadline_seconds,
            ordering=found.enable_message_ordering,
            exactly_once=found.enable_exactly_once_delivery,
            dead_letter_topic=found.dead_letter_policy.dead_letter_topic,
            filter=found.filter,
        )

    async def topic_exists(self, name: str) -> bool:
        """Ask whether there is such a topic.

        Raises: UsageError when we may not look; WorldError when nothing answers.
        """
        path = self.topic_path(name)
        try:
            await self.patient_call(_GET_TOPIC, types.GetTopicRequest.pb()(topic=path))
        except AioRpcError as error:
            if error.code() is StatusCode.NOT_FOUND:
                return False
            raise self.failure(error, f"topic {path}", "pubsub.topics.get") from error
        return True

    async def create_topic(self, name: str) -> None:
        """Create a topic, unless it is there."""
        path = self.topic_path(name)
        await self._create(_CREATE_TOPIC, types.Topic.pb()(name=path), f"topic {path}", "pubsub.topics.create")

    async def create_subscription(
        self, name: str, topic: str, *, ordering: bool = True, ack_deadline: int = 60
    ) -> None:
        """Create a subscription, unless it is there; one that is there is left as it is."""
        path = self.subscription_path(name)
        request = types.Subscription.pb()(
            name=path,
            topic=self.topic_path(topic),
            enable_message_ordering=ordering,
            ack_deadline_seconds=ack_deadline,
        )
        what = f"subscription {path} of topic {self.topic_path(topic)}"
        await self._create(CREATE_SUBSCRIPTION, request, what, "pubsub.subscriptions.create")

    async def call(self, method: Method, request: Any, *, within: float) -> Any:
        """Send one request, to be answered within so many seconds; return the response's raw protobuf message.

        Raises: AioRpcError, which whoever knows what was asked for translates with `failure`.
        """
        multicallable = self._calls.get(method.path)
        if multicallable is None:
            multicallable = self._calls[method.path] = self._unary.unary_unary(
                method.path, request_serializer=method.serialize, response_deserializer=method.deserialize
            )
        metadata = routed(method.route, getattr(request, method.route))
        try:
            return await multicallable(request, timeout=within, metadata=metadata)
        except grpc.aio.UsageError as error:
            # The only misuse there is: whoever calls has one kind of error to deal with.
            none = grpc.aio.Metadata()
            raise AioRpcError(StatusCode.FAILED_PRECONDITION, none, none, details="it is closed here") from error

    async def patient_call(self, method: Method, request: Any) -> Any:
        """Send one request again and again while it fails for a reason that may pass."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        for pause in backoff():
            try:
                return await self.call(method, request, within=max(self._patience, 1.0))
            except AioRpcError as error:
                if error.code() not in RETRYABLE or _is_no_token(error) or loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("backoff never ends")

    def take_stream_channel(self) -> StreamChannel:
        """Take a place for one subscription's streams; give it back with `release`."""
        channel = next((c for c in self._stream_channels if c.taken < STREAMS_A_CHANNEL), None)
        if channel is None:
            channel = StreamChannel(self._new_channel())
            self._stream_channels.append(channel)
        channel.taken += 1
        return channel

    def failure(self, error: AioRpcError, what: str, permission: str) -> ReactorError:
        """Say in plain words why a call about `what`, which needs `permission`, failed."""
        code, details = error.code(), error.details()
        match code:
            case StatusCode.NOT_FOUND:
                return UsageError(
                    f"Pub/Sub at {self.address} knows no {what}: create it, or check the name and the project "
                    f"({details})"
                )
            case StatusCode.PERMISSION_DENIED:
                return UsageError(
                    f"Pub/Sub does not let us use {what}: give our account the permission {permission} ({details})"
                )
            case StatusCode.UNAUTHENTICATED:
                return UsageError(f"Pub/Sub at {self.address} does not accept our credentials: {_LOGIN} ({details})")
            case StatusCode.INVALID_ARGUMENT | StatusCode.FAILED_PRECONDITION | StatusCode.UNIMPLEMENTED:
                return UsageError(f"Pub/Sub at {self.address} refuses {what}: {details}")
        if _is_no_token(error):
            return UsageError(f"no access token for Pub/Sub: {_LOGIN} ({details})")
        return WorldError(
            f"Pub/Sub at {self.address} does not answer about {what}: {code.name}, {details}; "
            "is it running, and is the address right?"
        )

    async def close(self) -> None:
        """Close every channel; calls that are under way are cancelled."""
        channels = [self._unary, *(c.channel for c in self._stream_channels)]
        self._stream_channels.clear()
        await asyncio.gather(*[channel.close() for channel in channels])

    async def _create(self, method: Method, request: Any, what: str, permission: str) -> None:
        try:
            await self.patient_call(method, request)
        except AioRpcError as error:
            if error.code() is not StatusCode.ALREADY_EXISTS:
                raise self.failure(error, what, permission) from error


class StreamChannel:
    """A channel for the streams of at most 80 subscriptions."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.taken = 0

    def release(self) -> None:
        """Give a place back."""
        self.taken -= 1


def backoff(first: float = 0.1, most: float = 2.0) -> Pauses:
    """Give pauses in seconds, each up to twice the last, with jitter, for as long as one asks."""
    return Pauses(first, most)


class Pauses:
    """Pauses between attempts; `reset` begins again with short ones."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._next = first

    def __iter__(self) -> Pauses:
        return self

    def __next__(self) -> float:
        pause = self._next * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        self._next = min(self._most, self._next * 2)
        return pause

    def reset(self) -> None:
        """Begin again."""
        self._next = self._first


def routed(field: str, name: str) -> tuple[tuple[str, str], ...]:
    """Name the resource of a request, by which the service routes it (https://google.aip.dev/client-libraries/4222)."""
    return (("x-goog-request-params", f"{field}={quote(name, safe='')}"),)


def is_denied(error: ReactorError) -> bool:
    """Tell whether a failure is that we may not do what was asked for."""
    cause = error.__cause__
    return isinstance(cause, AioRpcError) and cause.code() is StatusCode.PERMISSION_DENIED


def _is_no_token(error: AioRpcError) -> bool:
    return error.code() is StatusCode.UNAVAILABLE and _NO_TOKEN in (error.details() or "")


def _named(project: str | None) -> str:
    if not project:
        raise UsageError("no project is given: set PUBSUB_PROJECT_ID or GOOGLE_CLOUD_PROJECT, or use --project")
    return project


def _credentials() -> tuple[Any, str | None]:
    try:
        return google.auth.default(scopes=_SCOPES)
    except DefaultCredentialsError as error:
        raise UsageError(f"no credentials for Google Cloud: {_LOGIN}") from error
    except GoogleAuthError as error:
        raise WorldError(f"Google's credentials cannot be had: {error}") from error


def _secure_channel(address: str, credentials: Any) -> Any:
    return grpc_helpers_async.create_channel(
        address, credentials=credentials, default_host=_SERVICE, options=_CHANNEL_OPTIONS
    )
