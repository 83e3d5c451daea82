"""A daemon that dies between a worker's commit and its acknowledgement: what comes after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from cdc_reactor.database import open_engine
from cdc_reactor.local.broker_server import LocalBroker
from cdc_reactor.messages import Message
from table_handlers.schema import post_authors
from tests.daemon_stage import Stage
from tests.integration import forum
from tests.shells import Process, until
from workers.schema import reputations, rewarded_upvotes

WORKERS = ("post-upvoted-reputation", "post-upvoted-notify-author")
#: The leases of whoever died are over then.
LEASES_END = 700
UPVOTE = Message(b'{"post_id": 3, "voter_id": 1}', {"event_id": "upvote-1"}, "3")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The daemon's database; user 6 wrote post 3."""
    found = open_engine(f"sqlite:///{tmp_path}/.cdc-reactor/run.db")
    forum.create_tables(found)
    with found.begin() as connection:
        connection.execute(insert(post_authors), {"post": 3, "author": 6})
    yield found
    found.dispose()


@pytest.fixture
def stage(stage: Stage) -> Stage:
    stage.create_topic("reputation.added.v1")
    stage.subscribe("added", "reputation.added.v1")
    return stage


@pytest.fixture
def run(
    start: Callable[..., Process], stage: Stage, engine: Engine, tmp_path: Path, broker: LocalBroker
) -> Callable[..., Process]:
    """Start a daemon that dies for these reasons, after the leases of the last one."""

    def run_one(*crashes: str) -> Process:
        broker.advance(LEASES_END)
        place = ("--pubsub-host", stage.address, "--project", "p", "--health-port", "0")
        module = str(Path(__file__).with_name("crashing.py"))
        return start("run", *place, "--handlers", module, CRASHES=",".join(crashes), CRASHED=str(tmp_path))

    return run_one


def is_settled(stage: Stage, *subscriptions: str) -> bool:
    return all(stage.statistics(name)["backlog"] == 0 for name in subscriptions)


def told(stage: Stage, subscription: str) -> dict[str, list[Any]]:
    """The events that a plain client pulls, each as often as it was published, by their event ids."""
    # By message id, since the client's own acknowledgements may get lost, too.
    published = {message.message_id: message for message in stage.take(subscription)}
    found: dict[str, list[Any]] = {}
    for message in published.values():
        found.setdefault(message.attributes["event_id"], []).append(json.loads(message.data))
    return found


def assert_counted_once(engine: Engine) -> None:
    assert forum.rows(engine, reputations) == [(6, 10)]
    assert forum.rows(engine, rewarded_upvotes) == [(3, 1)]


def test_a_worker_that_died_after_its_commit_loses_no_event_and_no_notification(run, stage, engine, tmp_path):
    crashes = ("reputation", "notification")
    stage.publish(UPVOTE, topic="post.upvoted.v1")
    # Either may die first, and with it the other's run.
    while not all((tmp_path / f"crashed-{name}").exists() for name in crashes):
        assert run(*crashes).status() == -9
    assert not is_settled(stage, *WORKERS)
    assert forum.rows(engine, reputations) == [(6, 10)]

    daemon = run(*crashes)
    until(lambda: is_settled(stage, *WORKERS), "all is acknowledged")
    daemon.terminate()

    assert daemon.status() == 0
    assert_counted_once(engine)
    # Twice where the other died before an acknowledgement was out, but never as two events.
    ((added, *_),) = told(stage, "added").values()
    ((notification, *_),) = told(stage, "told").values()
    assert (added, notification["dedupe_key"]) == ({"post_id": 3, "voter_id": 1}, "post-upvoted:3")
    assert stage.letters() == []


def test_what_was_published_before_the_kill_is_published_again_with_the_same_ids(run, stage, engine):
    stage.publish(UPVOTE, topic="post.upvoted.v1")
    # No acknowledgement arrives: as if the process died before it sent one.
    stage.admin.drop_acks(10_000)
    daemon = run()
    names = ("added", "told")
    until(lambda: all(stage.statistics(name)["published"] == 1 for name in names), "both are published")
    daemon.kill()
    stage.admin.drop_acks(0)
    assert not is_settled(stage, *WORKERS)

    again = run()
    until(lambda: is_settled(stage, *WORKERS), "all is acknowledged")
    again.terminate()

    assert again.status() == 0
    (added,), (notifications,) = (told(stage, name).values() for name in names)
    assert added == [{"post_id": 3, "voter_id": 1}] * 2
    assert [notification["dedupe_key"] for notification in notifications] == ["post-upvoted:3"] * 2
    assert_counted_once(engine)
    assert stage.letters() == []


def test_a_table_handler_that_died_after_its_commit_still_announces_the_upvotes(run, stage, engine, tmp_path):
    votes = forum.about_post(forum.of_tables(forum.captured("forum_schemas_off.records.ndjson"), "votes"), 3)
    stage.publish(*votes)
    assert run("votes").status() == -9

    daemon = run("votes")
    until(lambda: is_settled(stage, "cdc", *WORKERS), "all is acknowledged")
    daemon.terminate()

    assert daemon.status() == 0
    assert sorted(event["voter_id"] for (event, *_) in told(stage, "upvoted").values()) == [1, 2]
