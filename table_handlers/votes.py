"""Changes of public.votes: announce upvotes and what they do to a post's score.

What a change did to the score is its value after less its value before. REPLICA IDENTITY DEFAULT does not send the
value before, so the value that a vote got at each position of the log is written down; where it is sent, it is used.

Why each position and not the last value alone: a change that comes again, because the daemon died after the commit and
before its events were out, must publish the same events again. Whatever came later must not hide what was before it.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cdc_reactor import Batch, Change, Context, Create, Delete, Event, ImageUnavailable, Row, Truncate, Update, handles
from table_handlers.schema import counted_votes, upsert


class Vote(Row, table="public.votes", key=("post", "voter")):
    """A vote of one user on one post: 1, -1, or none."""

    post: int
    voter: int
    value: int | None = None


class PostUpvoted(Event, topic="post.upvoted.v1"):
    """A user who did not like a post before likes it now."""

    post_id: int
    voter_id: int


class PostScoreChanged(Event, topic="post.score-changed.v1"):
    """Votes changed a post's score."""

    post_id: int
    difference: int


@handles(Vote)
def score_votes(batch: Batch[Vote], ctx: Context) -> None:
    """Publish PostScoreChanged where a vote changed the score, PostUpvoted where it became a positive one."""
    for change in batch:
        match change:
            case Create(after=vote) | Update(after=vote):
                _count(ctx, change, vote, vote.value or 0)
            case Delete(before=gone):
                _count(ctx, change, gone, 0)
            case Truncate():
                ctx.session.execute(delete(counted_votes))


def _value_before(session: Session, change: Create[Vote] | Update[Vote] | Delete[Vote], vote: Vote) -> int:
    """Return what the vote was worth: as the change says, else as it was counted before this position."""
    try:
        if change.before is not None:
            return change.before.value or 0
    except ImageUnavailable:
        pass  # a delete that carries its key only
    column = counted_votes.c
    earlier = select(column.value).where(
        column.post == vote.post, column.voter == vote.voter, column.lsn < (change.lsn or 0)
    )
    return session.scalar(earlier.order_by(column.lsn.desc()).limit(1)) or 0


def _count(ctx: Context, change: Change[Vote], vote: Vote, now: int) -> None:
    assert not isinstance(change, Truncate), "a truncate names no vote"
    before = _value_before(ctx.session, change, vote)
    counted = {"post": vote.post, "voter": vote.voter, "lsn": change.lsn or 0, "value": now}
    upsert(ctx.session, counted_votes, [counted])
    if now != before:
        ctx.publish(PostScoreChanged(post_id=vote.post, difference=now - before), key=str(vote.post))
    if before <= 0 < now:
        ctx.publish(PostUpvoted(post_id=vote.post, voter_id=vote.voter), key=str(vote.post))
