"""Reputation: counted once for each reader, and only when the author is known."""

from sqlalchemy import Engine, insert, select

from cdc_reactor.testing import Harness, assert_registered, expect_acked, expect_dead_lettered, expect_nacked
from table_handlers.posts import Post, remember_authors
from table_handlers.schema import metadata, post_authors
from table_handlers.votes import PostUpvoted, Vote, score_votes
from workers.reputation import POINTS, add_reputation
from workers.schema import reputations

AUTHOR, READER, OTHER = 1, 2, 3
UPVOTE = PostUpvoted(post_id=10, voter_id=READER)


def know_author(database: Engine) -> None:
    metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(insert(post_authors), {"post": 10, "author": AUTHOR})


def points(database: Engine) -> list[tuple[int, int]]:
    with database.connect() as connection:
        return [(user, count) for user, count in connection.execute(select(reputations).order_by("user_id"))]


def test_an_upvote_adds_points_to_the_author(database: Engine) -> None:
    know_author(database)

    expect_acked(add_reputation, UPVOTE, engine=database)
    expect_acked(add_reputation, PostUpvoted(post_id=10, voter_id=OTHER), engine=database)

    assert points(database) == [(AUTHOR, 2 * POINTS)]


def test_an_upvote_that_comes_twice_counts_once(database: Engine) -> None:
    know_author(database)
    harness = Harness(add_reputation, engine=database).publish(UPVOTE)

    harness.run().expect_acked()
    harness.redeliver().run().expect_acked()

    assert points(database) == [(AUTHOR, POINTS)]


def test_a_reader_who_votes_again_counts_once(database: Engine) -> None:
    know_author(database)

    Harness(add_reputation, engine=database).publish(UPVOTE).publish(UPVOTE).run().expect_acked()

    assert points(database) == [(AUTHOR, POINTS)]


def test_nobody_gains_by_their_own_vote(database: Engine) -> None:
    know_author(database)

    expect_acked(add_reputation, PostUpvoted(post_id=10, voter_id=AUTHOR), engine=database)

    assert points(database) == []


def test_an_upvote_that_is_faster_than_its_post_waits_for_it(database: Engine) -> None:
    expect_nacked(add_reputation, UPVOTE, match="the author of post 10 is not known yet", engine=database)

    know_author(database)

    expect_acked(add_reputation, UPVOTE, engine=database)
    assert points(database) == [(AUTHOR, POINTS)]


def test_an_upvote_of_a_post_that_never_comes_is_given_up() -> None:
    run = expect_dead_lettered(add_reputation, UPVOTE, match="the author of post 10 is not known yet")

    assert run.dead_letters[0].attempts == 5


def test_what_is_no_upvote_is_given_up_at_once_with_its_field_named() -> None:
    run = expect_dead_lettered(
        add_reputation, b'{"post_id": 10, "voter_id": "ada"}', match="voter_id: .* valid integer"
    )

    assert run.dead_letters[0].attempts == 1


def test_a_vote_in_the_database_becomes_reputation(database: Engine) -> None:
    harness = Harness(remember_authors, score_votes, add_reputation, engine=database)

    harness.insert(Post(id=10, author=AUTHOR)).run().expect_acked()
    harness.insert(Vote(post=10, voter=READER, value=1)).insert(Vote(post=10, voter=OTHER, value=-1))
    harness.run().expect_acked()

    assert points(database) == [(AUTHOR, POINTS)]


def test_it_is_registered() -> None:
    assert_registered(add_reputation)
