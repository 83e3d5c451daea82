"""The stage of the fault tests: a broker, daemons and stock clients as processes of their own, and what is seen of them.

Everything that is started here is ended here by its own pid. All waiting is done by `until`, against a deadline.
Neighbours: `traffic` says what is published, `effects` reads what was applied, `checker` judges it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PullRequest, PullResponse

from cdc_reactor.local.broker_admin import BrokerAdmin
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from tests.faults import traffic
from tests.faults.checker import Effect, Letter, Sighting, Story
from tests.faults.effects import EffectLog
from tests.faults.traffic import Change

PROJECT = "faults"
TOPIC = f"projects/{PROJECT}/topics/cdc"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/cdc"
LETTERS = f"projects/{PROJECT}/topics/cdc-dead-letters"
LETTERS_SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/cdc-dead-letters"

_PULL_REQUEST: Any = PullRequest.pb()
_PULL_RESPONSE: Any = PullResponse.pb()

_HERE = Path(__file__).parent
_COMMAND = [sys.executable, "-m", "cdc_reactor.cli"]
_never = threading.Event()

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, within: float = 30.0, every: float = 0.01) -> T:
    """Wait until a condition holds, and return what it gave; fail with `what` when it takes too long."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        _never.wait(every)
    return found


def until_time(due: float) -> None:
    """Wait until the monotonic clock says `due`."""
    until(lambda: time.monotonic() >= due, "time goes on", within=max(0.0, due - time.monotonic()) + 5, every=0.001)


class Process:
    """A process that a test started; its output goes to a file."""

    def __init__(self, command: Sequence[str], output: Path, *, env: Mapping[str, str], folder: Path) -> None:
        self._output = output
        self.started = time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_without_settings(os.environ), **env},
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def says(self, pattern: str, *, within: float = 30.0) -> re.Match[str]:
        """Wait for something in its output."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.output)
            assert match or self.is_running, f"it ended with {self._process.returncode}:\n{self.output}"
            return match

        found_match = until(found, f"{pattern!r} in what it says", within=within, every=0.005)
        assert found_match is not None, "until returns what holds"
        return found_match

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait(10)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def status(self, *, within: float) -> int:
        """Wait for its end, and return its exit status."""
        return self._process.wait(within)

    def peak_bytes(self) -> int:
        """Say how much memory it had resident at most (proc(5), VmHWM)."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", text)
        assert match is not None, "Linux tells the peak of every process"
        return int(match[1]) * 1024

    def end(self) -> None:
        if self.is_running:
            self.kill()


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what a developer may have set for a daemon of their own."""
    theirs = ("CDC_", "PUBSUB_", "GOOGLE_CLOUD_PROJECT")
    return {name: value for name, value in environ.items() if not name.startswith(theirs)}


class Clients:
    """The official clients, on a channel of their own to one broker; close it when done."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def set_up(self, *, exactly_once: bool = False, ack_deadline: int = 10) -> None:
        """Create the topics, the subscription under test and one for the dead letters."""
        for topic in (TOPIC, LETTERS):
            self.publisher.create_topic(name=topic)
        for name, topic, is_exact in (
            (SUBSCRIPTION, TOPIC, exactly_once),
            (LETTERS_SUBSCRIPTION, LETTERS, False),
        ):
            self.subscriber.create_subscription(
                request={
                    "name": name,
                    "topic": topic,
                    "enable_message_ordering": True,
                    "ack_deadline_seconds": ack_deadline,
                    "enable_exactly_once_delivery": is_exact,
                }
            )

    def letters(self) -> list[Letter]:
        """Take everything out of the dead letters."""
        pull = self._channel.unary_unary(
            "/google.pubsub.v1.Subscriber/Pull",
            request_serializer=_PULL_REQUEST.SerializeToString,
            response_deserializer=_PULL_RESPONSE.FromString,
        )
        # The client warns of `return_immediately`, which is for tests like these.
        request = _PULL_REQUEST(subscription=LETTERS_SUBSCRIPTION, max_messages=1000, return_immediately=True)
        found: list[Letter] = []
        while received := pull(request, timeout=30, wait_for_ready=True).received_messages:
            found += [traffic.letter(one.message.data) for one in received]
            self.subscriber.acknowledge(
                request={"subscription": LETTERS_SUBSCRIPTION, "ack_ids": [one.ack_id for one in received]}
            )
        return found

    def close(self) -> None:
        self._channel.close()


class Stage:
    """One test's broker, processes, log and clients. `close` ends all of them."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        #: Where the handlers are that daemons are given.
        self.here = _HERE
        self.log = EffectLog(folder / "effects.log")
        self.runs = folder / "runs.log"
        self.failures = folder / "failures.log"
        self._database_url = database_url
        self._processes: list[Process] = []
        self._closing: list[Callable[[], None]] = []
        self._sightings: list[Sighting] = []
        self._broker: Process | None = None
        self._is_virtual = False
        self._published = 0
        self.address = ""

    # ── the broker ──

    def start_broker(self, *arguments: str, exactly_once: bool = False, is_virtual: bool = False) -> None:
        """Start a broker and set up what is published to and consumed from; keeps nothing unless `arguments` say so.

        A virtual one is a thread of this process, and its leases end only by `pass_time`.
        """
        self._is_virtual = is_virtual
        if is_virtual:
            broker = LocalBroker.start(clock=VirtualClock())
            self._closing.append(broker.stop)
            self.address = broker.address
        else:
            self._broker = self._run_broker("--port", "0", *(arguments or ("--memory",)))
            self.address = self._broker.says(r"listening on (\S+:\d+)")[1]
        self.clients = Clients(self.address)
        self.outlet = traffic.Outlet(self.address)
        self.admin = BrokerAdmin(self.address)
        self._closing = [self.clients.close, self.outlet.close, self.admin.close, *self._closing]
        self.clients.set_up(exactly_once=exactly_once)

    def pass_time(self, seconds: float) -> None:
        """Let leases end; with a broker that is not virtual they end when they end."""
        if self._is_virtual:
            self.admin.advance(seconds)

    def refuse(self, seconds: float) -> None:
        """Let the broker refuse everything for so long, and return when that is over."""
        self.admin.refuse(seconds)
        until_time(time.monotonic() + seconds)

    def kill_broker(self) -> None:
        assert self._broker is not None, "a broker was started"
        self._broker.kill()

    def restart_broker(self, *arguments: str) -> None:
        """Start a broker on the same port as before; return once it answers."""
        self._broker = self._run_broker("--port", self.address.rpartition(":")[2], *arguments)
        self._broker.says(r"listening on (\S+:\d+)")

    def _run_broker(self, *arguments: str) -> Process:
        return self._start([*_COMMAND, "broker", *arguments], "broker", {})

    # ── those who consume ──

    def start_daemon(self, *, variables: Mapping[str, str] | None = None, **settings: object) -> Process:
        """Start a daemon and wait until its streams are open; `settings` are keys with `__` for the dot."""
        daemon = self.begin_daemon(variables=variables, **settings)
        daemon.says(r"(?m)^health .*\n")
        return daemon

    def begin_daemon(self, *, variables: Mapping[str, str] | None = None, **settings: object) -> Process:
        """Start a daemon and do not wait for it."""
        told = {
            "handlers": _HERE / "reacting.py",
            "database_url": self._database_url,
            "subscriptions": "cdc",
            "pubsub__emulator_host": self.address,
            "pubsub__project": PROJECT,
            "pubsub__ack_deadline": 10,
            "health__port": 0,
            **settings,
        }
        env = {f"CDC_{key.upper()}": str(value) for key, value in told.items()}
        return self._start([*_COMMAND, "run"], "daemon", {**self._variables(variables), **env})

    def start_stock_client(self, *, variables: Mapping[str, str] | None = None) -> Process:
        """Start the control and wait until it consumes."""
        client = self._start(
            [sys.executable, str(_HERE / "stock_client.py"), PROJECT, "cdc"],
            "stock_client",
            {**self._variables(variables), "PUBSUB_EMULATOR_HOST": self.address},
        )
        client.says("ready")
        return client

    def _variables(self, variables: Mapping[str, str] | None) -> dict[str, str]:
        told = {"LOG": str(self.log.path), "FAILURES": str(self.failures), **(variables or {})}
        return {f"CDC_REACTOR_FAULTS_{name}": value for name, value in told.items()}

    def _start(self, command: Sequence[str], name: str, env: Mapping[str, str]) -> Process:
        output = self.folder / f"{len(self._processes):03}-{name}.txt"
        process = Process(command, output, env=env, folder=self.folder)
        self._processes.append(process)
        return process

    # ── what is published and seen ──

    def publish(self, changes: Iterable[Change], *, size_bytes: int = 0, at_once: int = 500) -> None:
        """Publish changes, each row's in order, all confirmed."""
        self._published += self.outlet.publish(TOPIC, changes, size_bytes=size_bytes, at_once=at_once)

    def publish_paced(self, changes: Sequence[Change], rate: float) -> dict[tuple[int, int], float]:
        """Publish so many changes a second, 50 at once; return when (monotonic) the publication of each began."""
        sent: dict[tuple[int, int], float] = {}
        due = time.monotonic()
        for place in range(0, len(changes), 50):
            chunk = changes[place : place + 50]
            until_time(due)
            sent |= dict.fromkeys([(change.row, change.seq) for change in chunk], time.monotonic())
            self.publish(chunk)
            due += len(chunk) / rate
        return sent

    def applied(self) -> int:
        """Count the different changes that were applied so far."""
        return len({(effect.row, effect.seq) for effect in self.log.read()})

    def until_logged(self, count: int, *, within: float = 60.0) -> None:
        """Wait until the log has so many effects, or the broker has nothing left."""
        look_at = time.monotonic()

        def is_there() -> bool:
            nonlocal look_at
            if len(self.log) >= count:
                return True
            if time.monotonic() < look_at:
                return False
            # To ask the broker is dear, and the log is looked at every few milliseconds.
            look_at = time.monotonic() + 0.25
            return self.backlog() == 0

        until(is_there, f"{count} effects in the log", within=within, every=0.003)

    def until_applied(self, count: int, *, within: float = 60.0) -> None:
        """Wait until so many different changes are applied, or no more can come: the checker then says what is lost."""
        last = -1, time.monotonic()

        def is_there() -> bool:
            nonlocal last
            # To count different ones is dear in a long log, and useless before it is long enough.
            if len(self.log) >= count and self.applied() >= count:
                return True
            if len(self.log) != last[0]:
                last = len(self.log), time.monotonic()
            return time.monotonic() - last[1] > 2.0 and self.backlog() == 0

        until(is_there, f"{count} changes are applied", within=within, every=0.02)

    def until_settled(self, *, within: float = 60.0) -> None:
        """Wait until the broker has nothing left for the subscription under test."""
        until(lambda: self.backlog() == 0, "the broker has an acknowledgement of everything", within=within, every=0.05)

    def backlog(self) -> int:
        """Say how many messages the broker keeps for the subscription under test."""
        return self.statistics()["backlog"]

    def statistics(self) -> dict[str, int]:
        """Ask the broker what happened to the subscription under test; wait for one that just came back."""
        found: dict[str, int] | None = None

        def is_answered() -> bool:
            nonlocal found
            with suppress(grpc.RpcError):
                found = self.admin.subscription(SUBSCRIPTION)
            return found is not None

        until(is_answered, "the broker answers")
        return found or {}

    def sight(self) -> None:
        """Compare what the broker calls acknowledged with what is in the log after that."""
        acked = self._published - self.backlog()
        self._sightings.append(Sighting(acked, len(self.log)))

    def story(
        self,
        changes: Sequence[Change],
        *,
        effects: Sequence[Effect] | None = None,
        in_flight: int = 0,
        redelivered: int = 0,
    ) -> Story:
        """Tell what happened, dead letters and all; `effects` are those of the log unless others are given."""
        return Story(
            published=traffic.published(changes),
            poison=traffic.poison(changes),
            effects=self.log.read() if effects is None else effects,
            letters=self.clients.letters(),
            sightings=self._sightings,
            in_flight=in_flight,
            redelivered=redelivered,
        )

    def close(self) -> None:
        """End everything that was started."""
        for process in reversed(self._processes):
            process.end()
        for close in self._closing:
            with suppress(grpc.RpcError):
                close()
