"""Everybody who consumes in the Pub/Sub benchmark, as a process to be started: our daemon and the peers.

Each is started the same way: PUBSUB_EMULATOR_HOST says where the broker is, the subscription is named, BENCH_SEEN may
name a file for what its handlers are given. The daemon is the command `cdc-reactor run` with its defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.pubsub_environments import SHARED, Package, python_of, python_version_of
from benchmarks.pubsub_feed import REPOSITORY
from benchmarks.pubsub_peers import PROJECT
from benchmarks.pubsub_processes import Process

_PEERS = Path(__file__).with_name("pubsub_peers.py")
_DAEMON = "from cdc_reactor.cli import main; main()"

OURS = "cdc-reactor"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """Somebody who consumes; `package` is None where everything needed is installed here.

    `messages_a_second` is about what it does on two cores, for backlogs that all take about as long.
    """

    name: str
    messages_a_second: int
    package: Package | None = None
    environ: tuple[tuple[str, str], ...] = ()

    def python(self) -> str:
        """Return its interpreter; raises Unavailable."""
        return sys.executable if self.package is None else python_of(self.package)

    @property
    def version(self) -> str:
        """Say what it is, and on which Python."""
        own = [] if self.package is None else [f"{self.package.name} {self.package.version}"]
        shared = [f"{name} {version(name)}" for name in SHARED]
        return ", ".join([*own, *shared, f"Python {python_version_of(self.python())}"])

    def start(self, subscription: str, address: str, folder: Path, *, seen: Path | None = None) -> Process:
        """Start consuming; raises Unavailable."""
        environ = {"PUBSUB_EMULATOR_HOST": address, "PUBSUB_PROJECT_ID": PROJECT, **dict(self.environ)}
        if seen is not None:
            environ["BENCH_SEEN"] = str(seen)
        if self.name.startswith(OURS):
            environ |= _daemon_settings(subscription)
            command = [self.python(), "-c", _DAEMON, "run"]
        else:
            command = [self.python(), str(_PEERS), self.name.partition(" ")[0], subscription]
        place = folder / subscription
        place.mkdir(exist_ok=True)
        return Process(command, environ=environ, folder=place, name=self.name)


def _daemon_settings(subscription: str) -> dict[str, str]:
    return {
        "PYTHONPATH": str(REPOSITORY),
        "CDC_HANDLERS": "benchmarks.pubsub_handlers",
        "CDC_SUBSCRIPTIONS": subscription,
        "CDC_TOPIC": subscription,
        "CDC_HEALTH__PORT": "off",
    }


CONTENDERS: Sequence[Contender] = (
    Contender(name=OURS, messages_a_second=70_000),
    Contender(name="subscribe", messages_a_second=14_000),
    Contender(name="rele", messages_a_second=12_000, package=Package(name="rele", version="1.17.2")),
    Contender(
        name="fastpubsub",
        messages_a_second=5_000,
        package=Package(name="fastpubsub", version="0.9.8", python=(3, 12)),
    ),
)
