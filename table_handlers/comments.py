"""Changes of public.comments: keep the number of comments of each post, announce edits.

The table has REPLICA IDENTITY FULL, so every change tells what was before.
"""

from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from cdc_reactor import Batch, Context, Create, Delete, Event, Row, Truncate, Update, handles
from table_handlers.schema import comment_counts, counted_comments, upsert


class Comment(Row, table="public.comments"):
    """The columns of public.comments that are used here."""

    id: int
    post: int | None = None
    author: int | None = None
    text: str | None = None


class CommentEdited(Event, topic="comment.edited.v1"):
    """The text of a comment is another."""

    comment_id: int
    post_id: int | None
    text: str | None


@handles(Comment, ops=(Update,), when_changed=("text",))
def announce_edits(batch: Batch[Comment], ctx: Context) -> None:
    """Publish CommentEdited; updates that leave the text as it was do not even get here."""
    for change in batch:
        match change:
            case Update(after=comment):
                edited = CommentEdited(comment_id=comment.id, post_id=comment.post, text=comment.text)
                ctx.publish(edited, key=str(comment.id))


@handles(Comment)
def count_comments(batch: Batch[Comment], ctx: Context) -> None:
    """Keep comment_counts.

    Adding one for each Create would count a redelivered one twice. So it is written down which comment is counted
    where, which may be repeated, and posts that a batch touches are counted anew.
    """
    post_of: dict[int, int | None] = {}
    for change in batch:
        match change:
            case Create(after=comment) | Update(after=comment):
                post_of[comment.id] = comment.post
            case Delete(before=gone):
                post_of[gone.id] = None
            case Truncate():
                ctx.session.execute(delete(counted_comments))
                ctx.session.execute(delete(comment_counts))
    earlier = _posts_of(ctx.session, post_of)
    uncounted = [comment for comment, post in post_of.items() if post is None]
    if uncounted:
        ctx.session.execute(delete(counted_comments).where(counted_comments.c.id.in_(uncounted)))
    counted = [{"id": comment, "post": post} for comment, post in post_of.items() if post is not None]
    upsert(ctx.session, counted_comments, counted)
    _count_anew(ctx.session, earlier | {post for post in post_of.values() if post is not None})


def _posts_of(session: Session, comments: Iterable[int]) -> set[int]:
    column = counted_comments.c
    return set(session.scalars(select(column.post).where(column.id.in_(comments))))


def _count_anew(session: Session, posts: set[int]) -> None:
    column = counted_comments.c
    query = select(column.post, func.count()).where(column.post.in_(posts)).group_by(column.post)
    counts = dict.fromkeys(posts, 0) | {row[0]: row[1] for row in session.execute(query)}
    # In one order everywhere, so that two batches that touch the same posts cannot lock each other out.
    upsert(session, comment_counts, [{"post": post, "comments": counts[post]} for post in sorted(counts)])
