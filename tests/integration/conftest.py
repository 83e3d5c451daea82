"""What integration tests share: a broker in this process, and commands in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.local.clocks import VirtualClock
from tests.daemon_stage import Stage
from tests.integration import forum
from tests.shells import Process


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    """A broker whose leases end by `advance` only."""
    with LocalBroker.start(clock=VirtualClock()) as started:
        yield started


@pytest.fixture
def stage(broker: LocalBroker) -> Iterator[Stage]:
    """A plain client of it; the topics and subscriptions of the samples are there."""
    made = Stage.set_up(broker)
    forum.set_up(made)
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a command in the test's folder."""
    started: list[Process] = []

    def start_one(*arguments: str, **variables: str) -> Process:
        started.append(Process(tmp_path, arguments, len(started), variables))
        return started[-1]

    yield start_one
    for process in started:
        process.end()
