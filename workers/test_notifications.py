"""What people are told: once, and not by themselves."""

from sqlalchemy import Engine, insert

from cdc_reactor import Notification
from cdc_reactor.testing import Harness, assert_registered, expect_acked, expect_dead_lettered, expect_nacked
from table_handlers.schema import metadata, post_authors
from table_handlers.users import User, UserCreated, announce
from table_handlers.votes import PostUpvoted
from workers.notifications import tell_author, welcome

AUTHOR, READER, OTHER = 1, 2, 3
UPVOTE = PostUpvoted(post_id=10, voter_id=READER)
WELCOME = Notification(type="welcome", recipients=("7",), context={"handle": "ada"}, dedupe_key="welcome:7")
LIKED = Notification(type="post-upvoted", recipients=("1",), context={"post_id": 10}, dedupe_key="post-upvoted:10")


def know_author(database: Engine) -> None:
    metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(insert(post_authors), {"post": 10, "author": AUTHOR})


def test_whoever_joins_is_welcomed() -> None:
    assert expect_acked(welcome, UserCreated(user_id=7, handle="ada")).notifications == [WELCOME]


def test_a_new_row_of_users_leads_to_one_welcome() -> None:
    harness = Harness(announce, welcome).insert(User(id=7, handle="ada"))

    assert harness.run().expect_acked().notifications == [WELCOME]


def test_a_user_without_a_handle_is_given_up_at_once() -> None:
    expect_dead_lettered(welcome, b'{"user_id": 7}', match="handle: Field required")


def test_an_author_is_told_of_the_first_upvote_of_a_post(database: Engine) -> None:
    know_author(database)
    harness = Harness(tell_author, engine=database)

    assert harness.publish(UPVOTE).run().expect_acked().notifications == [LIKED]
    second = PostUpvoted(post_id=10, voter_id=OTHER)
    assert harness.publish(second).run().expect_acked().notifications == []


def test_authors_are_not_told_of_their_own_votes(database: Engine) -> None:
    know_author(database)

    run = expect_acked(tell_author, PostUpvoted(post_id=10, voter_id=AUTHOR), engine=database)

    assert run.notifications == []


def test_an_upvote_that_is_faster_than_its_post_is_not_forgotten(database: Engine) -> None:
    assert expect_nacked(tell_author, UPVOTE, match="not known yet", engine=database).notifications == []

    know_author(database)

    assert expect_acked(tell_author, UPVOTE, engine=database).notifications == [LIKED]


def test_both_are_registered() -> None:
    assert_registered(welcome)
    assert_registered(tell_author)
