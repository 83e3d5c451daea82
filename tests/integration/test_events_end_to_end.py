"""From Debezium's bytes to rows and notifications: the shipped handlers and workers between a broker and a database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from cdc_reactor.database import open_engine
from cdc_reactor.messages import Message
from cdc_reactor.notification_delivery import Delivery
from cdc_reactor.testing import fresh_database
from table_handlers.schema import post_authors
from tests.daemon_stage import Stage, run, running, travel, until
from tests.integration import forum
from workers.schema import reputations, rewarded_upvotes

POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
FORMS = ["forum_schemas_off.records.ndjson", "forum_schemas_on.records.ndjson", "forum_one_topic.records.ndjson"]
LIKED = {
    "type": "post-upvoted",
    "recipients": ["6"],
    "context": {"post_id": 3},
    "dedupe_key": "post-upvoted:3",
    "send_at": None,
}


@pytest.fixture(params=["sqlite", POSTGRES])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database with the tables of the samples."""
    if request.param == "postgres":
        with fresh_database(request.getfixturevalue("postgres_url")) as found:
            forum.create_tables(found)
            yield found
        return
    found = open_engine(f"sqlite:///{tmp_path}/forum.db")
    forum.create_tables(found)
    yield found
    found.dispose()


def daemon(stage: Stage, engine: Engine) -> Any:
    """A daemon with everything that ships, as `cdc-reactor run` puts it together."""
    delivery = Delivery(topic=forum.NOTIFICATIONS, in_database=True)
    parts = [*forum.shipped().handlers, *forum.running_workers()]
    return running(stage, *parts, engine=engine, delivery=delivery)


def told(stage: Stage) -> list[tuple[dict[str, Any], str]]:
    """The notifications that a plain client pulls, each with its event's id, in the order of their dedupe keys."""
    found = [(json.loads(message.data), message.attributes["event_id"]) for message in stage.take("told")]
    return sorted(found, key=lambda pair: pair[0]["dedupe_key"])


def event_id_of(message: Any) -> str:
    return str(message.attributes["event_id"])


def again(message: Any) -> Message:
    """A message that was pulled, to be published once more."""
    return Message(message.data, dict(message.attributes), message.ordering_key)


def hurrying(condition: Callable[[], bool]) -> Callable[[], bool]:
    """Let the daemon's time pass about ten times as fast while a condition is waited for."""

    def is_true() -> bool:
        travel(0.05)
        return condition()

    return is_true


@pytest.mark.parametrize("form", FORMS)
def test_votes_as_debezium_sent_them_become_reputation_and_one_notification(stage, engine, form):
    changes = forum.about_post(forum.of_tables(forum.captured(form), "posts", "votes"), 3)
    # Post 3 of user 6, and its update; votes of users 1 and 2 for it.
    assert len(changes) == 4
    notifications: list[tuple[dict[str, Any], str]] = []
    upvotes: list[Any] = []

    async def test():
        async with daemon(stage, engine) as up:
            stage.publish(*changes)
            await until(lambda: len(forum.rows(engine, rewarded_upvotes)) == 2, show=stage.letters)
            await until(forum.is_settled(stage), show=up.why_not_ready)
            notifications.extend(told(stage))
            upvotes.extend(stage.take("upvoted"))

            # Debezium begins again from its last offset: the same bytes in new messages. Nobody can know whether what
            # was published because of them has been received, so it is published again, as the same events.
            stage.publish(*changes)
            await until(forum.is_settled(stage))
            assert stage.statistics("cdc")["acked"] == 8
            assert {event_id for _, event_id in told(stage)} <= {event_id for _, event_id in notifications}
            assert set(map(event_id_of, stage.take("upvoted"))) == set(map(event_id_of, upvotes))

    run(test)

    assert [notification for notification, _ in notifications] == [LIKED]
    assert [json.loads(m.data) for m in upvotes] == [{"post_id": 3, "voter_id": 1}, {"post_id": 3, "voter_id": 2}]
    assert [m.ordering_key for m in upvotes] == ["3", "3"]
    assert forum.rows(engine, post_authors) == [(3, 6)]
    assert forum.rows(engine, reputations) == [(6, 20)]
    assert forum.rows(engine, rewarded_upvotes) == [(3, 1), (3, 2)]
    assert stage.letters() == []


def test_an_event_that_comes_again_counts_once_and_its_notification_keeps_its_id(stage, engine):
    changes = forum.about_post(forum.of_tables(forum.captured(FORMS[0]), "posts", "votes"), 3)
    first: list[tuple[dict[str, Any], str]] = []
    more: list[tuple[dict[str, Any], str]] = []

    async def test():
        async with daemon(stage, engine):
            stage.publish(*changes)
            await until(lambda: len(forum.rows(engine, rewarded_upvotes)) == 2)
            await until(forum.is_settled(stage))
            first.extend(told(stage))

            upvotes = [again(message) for message in stage.take("upvoted")]
            stage.publish(*upvotes, *upvotes, topic="post.upvoted.v1")
            await until(forum.is_settled(stage))
            more.extend(told(stage))

    run(test)

    assert forum.rows(engine, reputations) == [(6, 20)]
    # Nobody can know whether the first was received, so it may be sent again, as the same event.
    assert {event_id for _, event_id in [*first, *more]} == {event_id for _, event_id in first}
    assert [notification for notification, _ in first] == [LIKED]
    assert stage.letters() == []


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_capture_goes_through_in_any_order_of_its_lanes(stage, engine, form):
    messages = forum.captured(form)

    async def test():
        async with daemon(stage, engine):
            stage.publish(*messages)
            # A vote may come before its post: then its workers wait for 5 s, which pass ten times as fast.
            await until(hurrying(lambda: len(forum.rows(engine, rewarded_upvotes)) == 3), show=stage.letters)
            await until(hurrying(forum.is_settled(stage)), show=stage.letters)

    run(test)

    assert stage.letters() == []
    assert forum.rows(engine, post_authors) == [(1, 1), (2, 2), (3, 6)]
    assert forum.rows(engine, reputations) == [(1, 10), (6, 20)]
    counts = Counter(notification["dedupe_key"] for notification, _ in told(stage))
    assert counts == {"post-upvoted:1": 1, "post-upvoted:3": 1, "welcome:6": 1, "welcome:60": 1}
