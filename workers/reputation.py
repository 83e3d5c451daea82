"""The reputation of authors: points for every reader who likes a post of theirs."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from cdc_reactor import Context, Retry, subscribes
from table_handlers.schema import post_authors
from table_handlers.votes import PostUpvoted
from workers.schema import add_points, insert_once, rewarded_upvotes

POINTS = 10


@subscribes(PostUpvoted, subscription="post-upvoted-reputation", max_messages=20)
def add_reputation(event: PostUpvoted, ctx: Context) -> None:
    """Give the author points for an upvote, once for each reader.

    The same event may come again, so what was rewarded is written down in the same transaction. The post itself comes
    by another way and may be late.
    """
    author = author_of(ctx.session, event.post_id)
    upvote = {"post": event.post_id, "voter": event.voter_id}
    if author != event.voter_id and insert_once(ctx.session, rewarded_upvotes, upvote):
        add_points(ctx.session, author, POINTS)


def author_of(session: Session, post_id: int) -> int:
    """Return who wrote a post; Retry where it has not come yet."""
    author: int | None = session.scalar(select(post_authors.c.author).where(post_authors.c.post == post_id))
    if author is None:
        raise Retry(f"the author of post {post_id} is not known yet", delay=5)
    return author
