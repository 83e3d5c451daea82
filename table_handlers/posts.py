"""Changes of public.posts: announce a post once it is published, and remember who wrote it.

The table has REPLICA IDENTITY DEFAULT, so an update does not say what changed, and `when_changed=("published",)` would
send it to the dead letters (comments.py shows that option). What was announced is written down instead, and by which
change: the same change announces it again when it comes again, because nobody knows whether its event got out.
"""

from datetime import date
from decimal import Decimal
from typing import Annotated

from sqlalchemy import delete, select

from cdc_reactor import Batch, Context, Create, DecimalBytes, Delete, EpochDays, Event, Row, Truncate, Update, handles
from table_handlers.schema import post_authors, published_posts, upsert


class Post(Row, table="public.posts"):
    """The columns of public.posts that are used here; `body`, which may be large and not sent, is not."""

    id: int
    author: int
    title: str | None = None
    #: numeric(8,2): without its schema the wire says everything but the two.
    score: Annotated[Decimal, DecimalBytes(2)] | None = None
    published: EpochDays | None = None


class PostPublished(Event, topic="post.published.v1"):
    """A post can be read by all."""

    post_id: int
    author_id: int
    title: str | None
    score: Decimal | None
    published: date


@handles(Post)
def announce_publication(batch: Batch[Post], ctx: Context) -> None:
    """Publish PostPublished for each post that has a date of publication and was not announced before."""
    announced = _announced(batch, ctx)
    new = []
    for change in batch:
        match change:
            case Create(after=post) | Update(after=post) if post.published is not None:
                lsn = change.lsn or 0
                if announced.setdefault(post.id, lsn) != lsn:
                    continue
                new.append({"id": post.id, "lsn": lsn})
                ctx.publish(
                    PostPublished(
                        post_id=post.id,
                        author_id=post.author,
                        title=post.title,
                        score=post.score,
                        published=post.published,
                    ),
                    key=str(post.id),
                )
    upsert(ctx.session, published_posts, new)


@handles(Post, ops=(Delete, Truncate))
def forget_publication(batch: Batch[Post], ctx: Context) -> None:
    """Remove what was written down about posts that are gone."""
    for change in batch:
        match change:
            case Delete(before=gone):
                ctx.session.execute(delete(published_posts).where(published_posts.c.id == gone.id))
            case Truncate():
                ctx.session.execute(delete(published_posts))


@handles(Post, snapshot=True)
def remember_authors(batch: Batch[Post], ctx: Context) -> None:
    """Keep who wrote which post, for the workers who must know; of those that were there before the connector, too."""
    authors: dict[int, int | None] = {}
    for change in batch:
        match change:
            case Create(after=post) | Update(after=post):
                authors[post.id] = post.author
            case Delete(before=gone):
                authors[gone.id] = None
            case Truncate():
                ctx.session.execute(delete(post_authors))
    gone_ids = [post_id for post_id, author in authors.items() if author is None]
    if gone_ids:
        ctx.session.execute(delete(post_authors).where(post_authors.c.post.in_(gone_ids)))
    upsert(ctx.session, post_authors, [{"post": p, "author": a} for p, a in authors.items() if a is not None])


def _announced(batch: Batch[Post], ctx: Context) -> dict[int, int]:
    """Return which posts of a batch were announced before, and by which position of the log, by one query."""
    ids = {change.after.id for change in batch if isinstance(change, Create | Update)}
    column = published_posts.c
    return {row.id: row.lsn for row in ctx.session.execute(select(column.id, column.lsn).where(column.id.in_(ids)))}
