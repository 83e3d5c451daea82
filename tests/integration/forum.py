"""The forum on a broker: what Debezium captured of it, the topics and subscriptions of the shipped workers, their rows.

Neighbours: `tests/daemon_stage` runs daemons in this process, `shells` runs commands in processes of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, select

from cdc_reactor import notification_delivery
from cdc_reactor.capture_formats import parse_record
from cdc_reactor.discovery import Discovery, load_handlers
from cdc_reactor.dispatcher import chosen
from cdc_reactor.messages import Message
from cdc_reactor.workers import Worker
from tests.daemon_stage import Stage
from workers import metadata

CAPTURES = Path(__file__).parent.parent / "captures"
NOTIFICATIONS = "notification.requested.v1"

_TABLE = re.compile(rb'"table":"(\w+)"')


def captured(name: str) -> list[Message]:
    """The messages of a capture as Debezium published them, byte for byte."""
    return [parse_record(line) for line in (CAPTURES / name).read_bytes().splitlines()]


def of_tables(messages: Iterable[Message], *tables: str) -> list[Message]:
    """Those that speak of these tables."""
    return [m for m in messages if (found := _TABLE.search(m.data)) and found[1].decode() in tables]


def about_post(messages: Iterable[Message], post: int) -> list[Message]:
    """Those of posts and votes that are this post, or a vote on it."""
    return [m for m in messages if (key := _key(m)).get("post", key.get("id")) == post]


def _key(message: Message) -> dict[str, Any]:
    key: dict[str, Any] = json.loads(message.ordering_key)
    # With schemas the key comes with its own.
    found: dict[str, Any] = key.get("payload", key)
    return found


def shipped() -> Discovery:
    """The handlers, workers and events of the sample packages, as the daemon finds them."""
    return load_handlers(["table_handlers", "workers"])


def running_workers() -> list[Worker[Any]]:
    """Those that `cdc-reactor run` runs without a group."""
    return chosen(shipped().workers, None)


def set_up(stage: Stage) -> None:
    """Create the topics of all events and the subscriptions of the workers, and watchers `told` and `upvoted`."""
    found = shipped()
    for topic in sorted({*(event.topic for event in found.events), NOTIFICATIONS}):
        stage.create_topic(topic)
    for worker in found.workers:
        stage.subscribe(worker.subscription, worker.topic)
    stage.subscribe("told", NOTIFICATIONS)
    stage.subscribe("upvoted", "post.upvoted.v1")


def is_settled(stage: Stage) -> Callable[[], bool]:
    """Whether the changes and the events of all running workers are acknowledged."""
    names = ["cdc", *(worker.subscription for worker in running_workers())]
    return lambda: all(stage.statistics(name)["backlog"] == 0 for name in names)


def create_tables(engine: Engine) -> None:
    """Create what the samples and the delivery of notifications keep."""
    metadata.create_all(engine)
    notification_delivery.metadata.create_all(engine)


def rows(engine: Engine, table: Table) -> list[tuple[Any, ...]]:
    """All rows of a table, sorted."""
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(table)))
