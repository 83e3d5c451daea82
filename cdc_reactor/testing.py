"""Tests in one line: `Harness(announce).insert(id=1).run().events`, `expect_acked(add_reputation, PostUpvoted(…))`.

The door to all that teams test with, and whether the daemon would find what is tested. Neighbours: `harness` sends
changes and events through the real thing, `worker_testing` says what is to become of one message, `testing_database` is
a database for a test. The fixtures of `pytest_plugin` are made of what is here.
"""

from __future__ import annotations

from typing import Any

from cdc_reactor.discovery import Discovery, discover
from cdc_reactor.handlers import Handler
from cdc_reactor.harness import Harness, Run
from cdc_reactor.testing_database import fresh_database
from cdc_reactor.worker_testing import (
    ExpectsAck,
    ExpectsFailure,
    expect_acked,
    expect_dead_lettered,
    expect_nacked,
)
from cdc_reactor.workers import Worker

__all__ = [
    "ExpectsAck",
    "ExpectsFailure",
    "Harness",
    "Run",
    "assert_registered",
    "expect_acked",
    "expect_dead_lettered",
    "expect_nacked",
    "fresh_database",
]


def assert_registered(declared: Handler[Any] | Worker[Any], package: str = "") -> None:
    """Fail where the daemon would not find this handler or worker, or would not start with it.

    `package` is where it must stand: "table_handlers" or "workers", unless given. It must be importable whole, and no
    other worker in it may have the same name or subscription.
    """
    package = package or ("workers" if isinstance(declared, Worker) else "table_handlers")
    found = discover([package], entry_points=False)
    problems = "".join(f"\n  {failure}" for failure in found.failures)
    assert not found.failures, f"{package} cannot be imported whole:{problems}"
    everything: list[Handler[Any] | Worker[Any]] = [*found.handlers, *found.workers]
    assert declared in everything, (
        f"{declared.name} ({declared.place}) is not found in {package}: it must stand at the module level of a module "
        f"in there. Found: {_names(found)}"
    )
    for other in everything:
        assert other is declared or other.name != declared.name, (
            f"{declared.name} ({declared.place}) has the name of {other.place}; the daemon refuses to start with both"
        )
    for rival in found.workers:
        assert rival is declared or not isinstance(declared, Worker) or rival.subscription != declared.subscription, (
            f"{declared.name} ({declared.place}) has the subscription of {rival.name} ({rival.place}), "
            f"{rival.subscription}; each would get a part of its messages"
        )


def _names(found: Discovery) -> str:
    handlers = [f"{handler.name} of {handler.table_id}" for handler in found.handlers]
    workers = [f"{worker.name} of {worker.topic}" for worker in found.workers]
    return ", ".join([*handlers, *workers]) or "none"
