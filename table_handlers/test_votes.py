"""Votes: what they do to a post's score."""

import pytest

from cdc_reactor.testing import Harness, assert_registered
from table_handlers.votes import PostScoreChanged, PostUpvoted, Vote, score_votes

UP = Vote(post=10, voter=1, value=1)
DOWN = Vote(post=10, voter=2, value=-1)


@pytest.mark.parametrize("replica_identity", ["full", "default"])
def test_the_score_changes_by_the_difference(replica_identity: str) -> None:
    harness = Harness(score_votes, replica_identity="full" if replica_identity == "full" else "default")

    run = harness.insert(UP).insert(DOWN).update(DOWN, value=1).delete(UP).run().expect_acked()

    assert run.events == [
        PostScoreChanged(post_id=10, difference=1),
        PostUpvoted(post_id=10, voter_id=1),
        PostScoreChanged(post_id=10, difference=-1),
        PostScoreChanged(post_id=10, difference=2),
        PostUpvoted(post_id=10, voter_id=2),
        PostScoreChanged(post_id=10, difference=-1),
    ]


def test_events_of_a_post_keep_their_order_by_their_key() -> None:
    run = Harness(score_votes).insert(UP).insert(DOWN).run()

    assert {publication.key for publication in run.publications} == {"10"}


def test_votes_that_are_delivered_again_are_announced_again_as_the_same_events() -> None:
    harness = Harness(score_votes, replica_identity="default").insert(UP).update(UP, value=-1).update(UP, value=1)

    first = harness.run().expect_acked()
    again = harness.redeliver().run().expect_acked()

    assert len(first.events) == 5
    ids = [publication.attributes["event_id"] for publication in first.publications]
    assert [publication.attributes["event_id"] for publication in again.publications] == ids


def test_an_emptied_table_begins_anew() -> None:
    run = Harness(score_votes).insert(UP).truncate().insert(UP).run().expect_acked()

    assert run.events == [PostScoreChanged(post_id=10, difference=1), PostUpvoted(post_id=10, voter_id=1)] * 2


def test_it_is_registered() -> None:
    assert_registered(score_votes)
