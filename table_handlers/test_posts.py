"""Posts: announced once, when they are published."""

from datetime import date
from decimal import Decimal

from sqlalchemy import select

from cdc_reactor.testing import Harness, assert_registered
from table_handlers.posts import Post, PostPublished, announce_publication, forget_publication, remember_authors
from table_handlers.schema import post_authors

DRAFT = Post(id=3, author=1, title="Hello", score=Decimal("1.25"))
MONDAY = date(2026, 11, 23)
PUBLISHED = PostPublished(post_id=3, author_id=1, title="Hello", score=Decimal("1.25"), published=MONDAY)


def test_a_post_is_announced_when_it_gets_its_date() -> None:
    run = Harness(announce_publication).insert(DRAFT).update(DRAFT, published=MONDAY).run().expect_acked()

    assert run.events == [PUBLISHED]


def test_a_post_is_announced_once_however_often_it_changes() -> None:
    published = DRAFT.model_copy(update={"published": MONDAY})
    harness = Harness(announce_publication, replica_identity="default").update(DRAFT, published=MONDAY)

    assert harness.run().events == [PUBLISHED]
    assert harness.update(published, title="Hello!").run().events == []


def test_a_change_that_comes_again_announces_its_post_again_as_the_same_event() -> None:
    harness = Harness(announce_publication).update(DRAFT, published=MONDAY)

    first, again = harness.run(), harness.redeliver().run()

    assert again.events == [PUBLISHED]
    assert [p.attributes for p in again.publications] == [p.attributes for p in first.publications]


def test_a_post_that_is_gone_is_forgotten() -> None:
    published = DRAFT.model_copy(update={"published": MONDAY})
    harness = Harness(announce_publication, forget_publication)

    assert harness.insert(published).run().events == [PUBLISHED]
    harness.delete(published).run().expect_acked()
    assert harness.insert(published).run().events == [PUBLISHED]
    harness.truncate().run().expect_acked()
    assert harness.insert(published).run().events == [PUBLISHED]


def test_authors_follow_posts_and_go_with_them() -> None:
    harness = Harness(remember_authors).insert(DRAFT).insert(DRAFT, id=4, author=2).update(DRAFT, author=5)

    assert harness.run().session.execute(select(post_authors).order_by("post")).all() == [(3, 5), (4, 2)]
    assert harness.delete(DRAFT).run().session.execute(select(post_authors)).all() == [(4, 2)]
    assert harness.truncate().run().expect_acked().session.execute(select(post_authors)).all() == []


def test_authors_of_posts_that_were_there_before_the_connector_are_known() -> None:
    run = Harness(remember_authors).snapshot(DRAFT).run().expect_acked()

    assert run.session.execute(select(post_authors)).all() == [(3, 1)]


def test_with_schemas_it_is_the_same() -> None:
    assert Harness(announce_publication, schemas=True).update(DRAFT, published=MONDAY).run().events == [PUBLISHED]


def test_both_are_registered() -> None:
    assert_registered(announce_publication)
    assert_registered(forget_publication)
