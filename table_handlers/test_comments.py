"""Comments: counted for each post, edits announced."""

from sqlalchemy import select

from cdc_reactor.testing import Harness, Run, assert_registered
from table_handlers.comments import Comment, CommentEdited, announce_edits, count_comments
from table_handlers.schema import comment_counts

FIRST = Comment(id=1, post=10, text="first")
SECOND = Comment(id=2, post=10, text="second")
OTHER = Comment(id=3, post=11, text="other")


def counts(run: Run) -> dict[int, int]:
    """Return the number of comments of each post, when all is well."""
    return {row[0]: row[1] for row in run.expect_acked().session.execute(select(comment_counts))}


def test_comments_are_counted_for_each_post() -> None:
    harness = Harness(count_comments).insert(FIRST).insert(SECOND).insert(OTHER)

    assert counts(harness.run()) == {10: 2, 11: 1}
    assert counts(harness.update(SECOND, post=11).run()) == {10: 1, 11: 2}
    assert counts(harness.delete(FIRST).run()) == {10: 0, 11: 2}


def test_what_is_delivered_twice_is_counted_once() -> None:
    harness = Harness(count_comments).insert(FIRST).insert(SECOND).update(FIRST, text="edited").delete(SECOND)

    assert counts(harness.run()) == counts(harness.redeliver().run()) == {10: 1}


def test_an_emptied_table_has_nothing_to_count() -> None:
    assert counts(Harness(count_comments).insert(FIRST).truncate().insert(OTHER).run()) == {11: 1}


def test_an_edit_is_announced_and_a_move_is_not() -> None:
    run = Harness(announce_edits).insert(FIRST).update(FIRST, text="edited").update(FIRST, post=11).run().expect_acked()

    assert run.events == [CommentEdited(comment_id=1, post_id=10, text="edited")]
    assert run.runs == 1


def test_both_are_registered() -> None:
    assert_registered(announce_edits)
    assert_registered(count_comments)
