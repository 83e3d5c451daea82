"""One list of cases for every Pub/Sub: our broker, Google's emulator where it is installed, a real project if one is named.

A case asks for `pubsub` and then runs once for each server. What the emulator does otherwise than the service stands in
`emulator_gaps.toml`, case by case with its reason; a case named there must fail there, so that the list stays true.

The service needs CDC_REACTOR_GCP_PROJECT and application default credentials. The project's Pub/Sub service account must
be allowed to publish and subscribe, or it forwards no dead letters
(https://cloud.google.com/pubsub/docs/handling-failures#grant_forwarding_permissions). Everything that a case makes has a
name of its own and is deleted after it.

Time: our broker has a virtual clock, which moves only when a case lets time pass. Real clocks are waited for by the
calls that follow, each with a deadline; nothing here sleeps.
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google.auth
import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError, NotFound, from_grpc_error
from google.pubsub_v1 import PublisherClient, SchemaServiceClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import (
    PubsubMessage,
    PullRequest,
    ReceivedMessage,
    StreamingPullRequest,
    StreamingPullResponse,
)

from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock

HERE = Path(__file__).parent
GAPS: dict[str, dict[str, str]] = tomllib.loads((HERE / "emulator_gaps.toml").read_text())
PROJECT_VARIABLE = "CDC_REACTOR_GCP_PROJECT"

#: One call; without it a call that is never answered would take pytest's own timeout with it.
CALL_TIMEOUT = 20.0
_CASES = pytest.StashKey[set[tuple[str, str]]]()
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@functools.cache
def emulator_jar() -> Path | None:
    """Where the package of Google's emulator put its jar, None where it is not installed or Java is not."""
    if not (shutil.which("dpkg") and shutil.which("java")):
        return None
    listed = subprocess.run(
        ["dpkg", "-L", "google-cloud-cli-pubsub-emulator"], check=False, capture_output=True, text=True
    )
    return next((Path(line) for line in listed.stdout.splitlines() if line.endswith("-all.jar")), None)


# ──────────────────────────────────────── collection ────────────────────────────────────────


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow_clock: waits for a second or more where the clock is real")
    config.addinivalue_line(
        "markers", "virtual_clock(why): only where the clock can be moved, for it would take too long"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        only_virtual = metafunc.definition.get_closest_marker("virtual_clock") is not None
        metafunc.parametrize("server", ["broker"] if only_virtual else _servers(), indirect=True, scope="session")


def _servers() -> list[str]:
    emulator = ["emulator"] if emulator_jar() else []
    return ["broker", *emulator, *(["cloud"] if os.environ.get(PROJECT_VARIABLE) else [])]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expect the named gaps to fail on the emulator."""
    cases = config.stash.setdefault(_CASES, set())
    for item in items:
        if HERE not in item.path.parents or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        server, case = item.callspec.params.get("server"), _case_of(item)
        cases.add((item.path.stem, case))
        reason = GAPS.get(item.path.stem, {}).get(case)
        if server == "emulator" and reason:
            failures = (AssertionError, GoogleAPICallError, pytest.fail.Exception)
            item.add_marker(
                pytest.mark.xfail(reason=reason, strict=not reason.startswith("sometimes "), raises=failures)
            )


def _case_of(item: pytest.Function) -> str:
    """Name the case without its server: `test_it` or `test_it[parameters]`."""
    parameters = [part for part in item.callspec.id.split("-") if part not in ("broker", "emulator", "cloud")]
    return f"{item.originalname}[{'-'.join(parameters)}]" if parameters else item.originalname


@pytest.fixture
def collected_cases(request: pytest.FixtureRequest) -> set[tuple[str, str]]:
    """Each case of the modules that were collected: the module's name and the case's."""
    return request.config.stash[_CASES]


@pytest.fixture
def named_gaps() -> dict[str, dict[str, str]]:
    return GAPS


@pytest.fixture
def emulator() -> Path:
    """The emulator's jar; skips where there is none."""
    jar = emulator_jar()
    if jar is None:
        pytest.skip(
            "Google's emulator is not installed, its cases are left out: "
            "apt-get install google-cloud-cli-pubsub-emulator default-jre-headless"
        )
    return jar


# ──────────────────────────────────────── servers ────────────────────────────────────────


class MovedClock:
    """The time of our broker, in seconds since 1970: it passes only when it is told to, and the broker acts on it."""

    def __init__(self) -> None:
        self.time = VirtualClock()
        self.broker = LocalBroker.start(clock=self.time)

    def now(self) -> float:
        return self.time()

    def move(self, seconds: float) -> None:
        self.broker.advance(seconds)


class Server:
    """One Pub/Sub server and the official low-level clients to it.

    `patience` is how long, in real seconds, something that must happen may take. `clock` is None where it is real.
    """

    def __init__(
        self, project: str, channel: grpc.Channel, *, patience: float, clock: MovedClock | None = None
    ) -> None:
        self.project = project
        self.patience = patience
        self.clock = clock
        self.channel = channel
        # Any: its stubs take metadata and timeouts, which their types do not say.
        self.stubs: Any = SubscriberGrpcTransport(channel=self.channel)
        self.publisher = Once(PublisherClient(transport=PublisherGrpcTransport(channel=self.channel)))
        self.subscriber = Once(SubscriberClient(transport=self.stubs))
        self.schemas = Once(SchemaServiceClient(transport=SchemaServiceGrpcTransport(channel=self.channel)))

    def close(self) -> None:
        self.channel.close()


class Once:
    """A client's methods, each tried once: the default retries would hide what the server answered."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(getattr(self._client, name), retry=None, timeout=CALL_TIMEOUT)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = {"broker": _broker, "emulator": _emulator, "cloud": _cloud}[request.param]
    with start(tmp_path_factory.mktemp("conformance")) as server:
        yield server
        server.close()


@contextmanager
def _broker(folder: Path) -> Iterator[Server]:
    del folder
    clock = MovedClock()
    try:
        yield Server("conformance", _to(clock.broker.address), patience=5.0, clock=clock)
    finally:
        clock.broker.stop()


@contextmanager
def _emulator(folder: Path) -> Iterator[Server]:
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    with (folder / "emulator.log").open("wb") as log:
        command = ["java", "-Xmx512m", "-jar", str(emulator_jar()), f"--host={host}", f"--port={port}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_ready(address, folder / "emulator.log")
        yield Server("conformance", _to(address), patience=2.0)
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def _cloud(folder: Path) -> Iterator[Server]:
    del folder
    credentials, _ = google.auth.default(scopes=SubscriberGrpcTransport.AUTH_SCOPES)
    channel = SubscriberGrpcTransport.create_channel(credentials=credentials, options=_UNLIMITED)
    yield Server(os.environ[PROJECT_VARIABLE], channel, patience=60.0)


def _to(address: str) -> grpc.Channel:
    # The clients' own channel to an emulator receives 4 MiB at most: a pull of 1,000 large messages fails.
    return grpc.insecure_channel(address, options=_UNLIMITED)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(address: str, log: Path) -> None:
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=60)
        except grpc.FutureTimeoutError:
            pytest.fail(f"the emulator does not answer on {address}: {log.read_text(errors='replace')[-1000:]}")


# ──────────────────────────────────────── what a case works with ────────────────────────────────────────


class Stream:
    """One StreamingPull; its responses are read by a thread as they come."""

    def __init__(self, server: Server, first: dict[str, Any], *, deadline: Callable[[], float]) -> None:
        self._deadline = deadline
        self._requests: queue.SimpleQueue[StreamingPullRequest | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[StreamingPullResponse | grpc.RpcError | None] = queue.SimpleQueue()
        self.responses: list[StreamingPullResponse] = []
        self.send(**first)
        routing = ("x-goog-request-params", f"subscription={first.get('subscription', '')}")
        self._call = server.stubs.streaming_pull(iter(self._requests.get, None), metadata=[routing])
        self._reader = threading.Thread(target=self._read, name="conformance-stream")
        self._reader.start()

    def send(self, **fields: Any) -> None:
        self._requests.put(StreamingPullRequest(**fields))

    def receive(self, count: int) -> list[ReceivedMessage]:
        """Return the next deliveries, this many or more, in the order in which they came."""
        received: list[ReceivedMessage] = []
        deadline = self._deadline()
        while len(received) < count:
            response = self._next(deadline)
            if response is None:
                pytest.fail(f"{len(received)} of {count} deliveries came: {_texts(received)}")
            received += response.received_messages
        return received

    def confirmation(self, kind: str) -> Any:
        """Return the next response's confirmation of this kind; deliveries that come before it are passed over."""
        deadline = self._deadline()
        while (response := self._next(deadline)) is not None:
            if kind in response:
                return getattr(response, kind)
        return pytest.fail(f"no {kind} came")

    def stays_quiet(self, seconds: float = 0.4) -> None:
        """Check that no delivery comes for this long, in real seconds."""
        deadline = time.monotonic() + seconds
        while (response := self._next(deadline)) is not None:
            assert _texts(response.received_messages) == []

    def end(self) -> str:
        """Wait until the server ends the stream; return the status."""
        deadline = self._deadline()
        while True:
            try:
                arrived = self._arrived.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                return pytest.fail("the stream is still open")
            if not isinstance(arrived, StreamingPullResponse):
                return "OK" if arrived is None else str(arrived.code().name)

    def end_requests(self) -> None:
        """Say that no request follows; the call goes on until the server ends it."""
        self._requests.put(None)

    def has_response(self) -> bool:
        """Whether something came that nobody has asked for yet."""
        return not self._arrived.empty()

    def close(self) -> None:
        """Cancel the call; what it held stays leased."""
        self._call.cancel()
        self._requests.put(None)
        self._reader.join(timeout=10)

    def _next(self, deadline: float) -> StreamingPullResponse | None:
        try:
            arrived = self._arrived.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            return None
        if not isinstance(arrived, StreamingPullResponse):
            pytest.fail(f"the stream ended: {arrived!r}")
        self.responses.append(arrived)
        return arrived

    def _read(self) -> None:
        try:
            for response in self._call:
                self._arrived.put(response)
        except grpc.RpcError as error:
            self._arrived.put(error)
        else:
            self._arrived.put(None)


class PubSub:
    """What a case works with: a server, names of its own, and waits that know the server's clock."""

    def __init__(self, server: Server, *, patience: float) -> None:
        self.server = server
        self.patience = patience
        self._passed_at = 0.0
        self.project = f"projects/{server.project}"
        self.publisher, self.subscriber, self.schemas = server.publisher, server.subscriber, server.schemas
        self._prefix = f"conformance-{uuid.uuid4().hex[:12]}"
        self._numbers = itertools.count(1)
        self._made = ExitStack()
        self._threads = self._made.enter_context(ThreadPoolExecutor(2))

    def close(self) -> None:
        self._made.close()

    # ── resources ──

    def name(self, kind: str) -> str:
        """Return a name that nothing has; what gets it is deleted after the case. `kind` is topics, schemas …"""
        name = f"{self.project}/{kind}/{self._prefix}-{next(self._numbers)}"
        self._made.callback(self._delete, kind, name)
        return name

    def topic(self, **fields: Any) -> str:
        return str(self.publisher.create_topic({"name": self.name("topics"), **fields}).name)

    def subscription(self, topic: str, **fields: Any) -> str:
        request = {"name": self.name("subscriptions"), "topic": topic, **fields}
        return str(self.subscriber.create_subscription(request).name)

    def pair(self, **fields: Any) -> tuple[str, str]:
        """Make a topic and its subscription; the fields are the subscription's."""
        topic = self.topic()
        return topic, self.subscription(topic, **fields)

    def _delete(self, kind: str, name: str) -> None:
        client = {"topics": self.publisher, "schemas": self.schemas}.get(kind, self.subscriber)
        one = kind.removesuffix("s")
        with suppress(NotFound):
            getattr(client, f"delete_{one}")({"name" if kind == "schemas" else one: name})

    # ── messages ──

    def publish(self, topic: str, *messages: str | PubsubMessage) -> list[str]:
        """Publish in one request; a text becomes the data. Return the message ids."""
        whole = [PubsubMessage(data=m.encode()) if isinstance(m, str) else m for m in messages]
        return list(self.publisher.publish({"topic": topic, "messages": whole}).message_ids)

    def publish_keyed(self, topic: str, *texts: str) -> None:
        """Publish one request for each text; its first letter is the ordering key."""
        for text in texts:
            self.publish(topic, PubsubMessage(data=text.encode(), ordering_key=text[0]))

    def pull(self, subscription: str, count: int, *, within: float = 0) -> list[ReceivedMessage]:
        """Return the next deliveries, exactly this many; time may pass on the server, `within` seconds at most."""
        received: list[ReceivedMessage] = []
        for _ in itertools.chain(self._moments(within), _real_moments(self.deadline() - time.monotonic())):
            received += self.pull_now(subscription, count - len(received))
            if len(received) == count:
                return received
        return pytest.fail(f"{len(received)} of {count} deliveries came: {_texts(received)}")

    def gives_nothing(self, subscription: str, *, seconds: float = 0) -> None:
        """Check that a subscription has nothing to deliver, now and for this long on the server's clock."""
        for _ in self._moments(seconds or (0 if self.server.clock else 0.3)):
            assert _texts(self.pull_now(subscription, 10)) == []

    def pull_now(self, subscription: str, count: int) -> list[ReceivedMessage]:
        """Pull once: without waiting, but on the real service, where an immediate answer tells nothing."""
        is_service = self.server.patience >= 60
        request = PullRequest(subscription=subscription, max_messages=count, return_immediately=not is_service)
        try:
            # Below the client, which warns of return_immediately.
            response = self.server.stubs.pull(request, timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            if is_service and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return []
            raise from_grpc_error(error) from None
        return list(response.received_messages)

    def ack(self, subscription: str, *received: ReceivedMessage) -> None:
        self.subscriber.acknowledge({"subscription": subscription, "ack_ids": self.ack_ids(received)})

    def nack(self, subscription: str, *received: ReceivedMessage) -> None:
        self.extend(subscription, *received, seconds=0)

    def extend(self, subscription: str, *received: ReceivedMessage, seconds: int) -> None:
        """Set the deadline of these deliveries to so many seconds from now; 0 gives them back."""
        request = {"subscription": subscription, "ack_ids": self.ack_ids(received), "ack_deadline_seconds": seconds}
        self.subscriber.modify_ack_deadline(request)

    def stream(self, subscription: str, *, deadline: int = 60, **fields: Any) -> Stream:
        first = {"subscription": subscription, "stream_ack_deadline_seconds": deadline, **fields}
        return self.raw_stream(**{name: value for name, value in first.items() if value is not None})

    def raw_stream(self, **first: Any) -> Stream:
        """Open a stream with exactly these fields in its first request."""
        stream = Stream(self.server, first, deadline=self.deadline)
        self._made.callback(stream.close)
        return stream

    def whichever(self, one: Stream, other: Stream) -> tuple[Stream, Stream]:
        """Wait until one of two streams has a response; return that one first."""
        for _ in _real_moments(self.deadline() - time.monotonic()):
            if one.has_response():
                return one, other
            if other.has_response():
                return other, one
        return pytest.fail("neither stream has a response")

    def in_background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Begin a call in a thread; return what waits for its result."""
        begun = threading.Event()

        def run() -> Any:
            begun.set()
            return call()

        future = self._threads.submit(run)
        begun.wait()
        return functools.partial(future.result, timeout=CALL_TIMEOUT)

    @staticmethod
    def texts(received: Iterable[ReceivedMessage]) -> list[str]:
        return _texts(received)

    @staticmethod
    def ack_ids(received: Iterable[ReceivedMessage]) -> list[str]:
        return [one.ack_id for one in received]

    # ── time ──

    def pass_time(self, seconds: float) -> None:
        """Let time pass on a virtual clock. Real time passes by itself: the waits that follow are so much longer."""
        if self.server.clock is not None:
            self.server.clock.move(seconds)
        else:
            self._passed_at = time.monotonic() + seconds

    def deadline(self) -> float:
        """When, in real monotonic seconds, to give up waiting for what must happen."""
        return max(time.monotonic(), self._passed_at) + self.patience

    def instant(self) -> datetime:
        """Return a time of the server after all that was published and before all that will be."""
        if self.server.clock is not None:
            self.pass_time(1)
            instant = datetime.fromtimestamp(self.server.clock.now(), UTC)
            self.pass_time(1)
            return instant
        topic, subscription = self.pair()
        times: list[Any] = []
        while len(times) < 3:
            self.publish(topic, "what time is it?")
            (probe,) = self.pull(subscription, 1)
            times = sorted({*times, probe.message.publish_time})
        middle: datetime = times[1]
        return middle

    def _moments(self, seconds: float) -> Iterator[None]:
        """Come again and again until so many seconds have passed on the server's clock."""
        if self.server.clock is None:
            yield from _real_moments(seconds)
            return
        yield
        step = max(0.25, seconds / 40)
        for _ in range(round(seconds / step)):
            self.server.clock.move(step)
            yield

    @contextmanager
    def refuses(self, *codes: str) -> Iterator[None]:
        """Check that the call is answered with one of these statuses."""
        with pytest.raises(GoogleAPICallError) as refused:
            yield
        status = refused.value.grpc_status_code
        assert (status.name if status else None) in codes, refused.value


def _real_moments(seconds: float) -> Iterator[None]:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    yield
    while time.monotonic() < deadline:
        pause.wait(0.02)
        yield


def _texts(received: Iterable[ReceivedMessage]) -> list[str]:
    return [one.message.data.decode(errors="replace")[:80] for one in received]


@pytest.fixture
def pubsub(server: Server, request: pytest.FixtureRequest) -> Iterator[PubSub]:
    is_gap = request.node.get_closest_marker("xfail") is not None
    # What will not come need not be waited for long.
    world = PubSub(server, patience=0.7 if is_gap else server.patience)
    yield world
    world.close()
