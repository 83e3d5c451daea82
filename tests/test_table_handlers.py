"""The worked set of handlers: every capture of the forum goes through, twice, and leaves the same behind."""

from __future__ import annotations

from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cdc_reactor.discovery import discover
from cdc_reactor.testing import Harness, Run
from table_handlers import metadata
from table_handlers.posts import PostPublished

CAPTURES = sorted(
    path for path in (Path(__file__).parent / "captures").iterdir() if path.name.endswith((".ndjson", ".b64"))
)
HANDLERS = discover(["table_handlers"], entry_points=False).handlers


# The package `workers` keeps its tables in the same metadata.
OF_WORKERS = ("reputations", "rewarded_upvotes")


def state(run: Run) -> dict[str, list[Any]]:
    with run.session as session:
        tables = [table for table in metadata.sorted_tables if table.name not in OF_WORKERS]
        return {table.name: sorted(map(tuple, session.execute(select(table)))) for table in tables}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_every_capture_goes_through_without_a_dead_letter(path):
    harness = Harness(*HANDLERS).replay_file(path)

    run = harness.run().expect_acked()

    # In the capture of one topic the connector skipped the truncate.
    visits = {} if "one_topic" not in path.name else {"page_visits": ["/", "/about"]}
    told = state(run)
    kept = {"page_visits": [page for page, _ in told.pop("page_visits")]}
    votes = {(post, voter): value for post, voter, _, value in told.pop("counted_votes")}
    published = [post for post, _ in told.pop("published_posts")]
    assert told == {
        "author_cards": [(1, "user1"), (2, "user2"), (3, "user3"), (60, "newcomer")],
        "counted_comments": [(1, 2), (2, 3), (3, 1), (4, 2), (5, 3), (6, 1)],
        "comment_counts": [(1, 2), (2, 2), (3, 2)],
        "post_authors": [(1, 1), (2, 2), (3, 6)],
    }
    # Of each vote the value at its last position in the log.
    assert (votes, published) == ({(1, 3): 1, (2, 1): 0, (3, 1): 1, (3, 2): 1}, [3])
    assert kept == {"page_visits": [], **visits}
    assert Counter(event.topic for event in run.events) == {
        "user.created.v1": 2,
        "user.deleted.v1": 2,
        "post.published.v1": 1,
        "post.score-changed.v1": 3,
        "post.upvoted.v1": 3,
        "comment.edited.v1": 1,
    }
    assert [event for event in run.events if isinstance(event, PostPublished)] == [
        PostPublished(
            post_id=3, author_id=6, title="Long one", score=Decimal("0.00"), published=date(2025, 6, 30)
        )
    ]  # fmt: skip


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_a_redelivery_of_everything_changes_nothing(path):
    harness = Harness(*HANDLERS).replay_file(path)

    before = state(harness.run().expect_acked())

    assert state(harness.redeliver().run().expect_acked()) == before


def test_every_table_of_the_forum_has_a_handler():
    assert {handler.table_id.table for handler in HANDLERS} == {"users", "posts", "comments", "votes", "visits"}
    assert discover(["table_handlers"], entry_points=False).failures == ()
