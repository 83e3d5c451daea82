"""The samples in a process that dies, once for each name in CRASHES, right after the run's commit: a power cut.

Nothing after the commit happens then: no event is published, nothing acknowledged. That it died is a file in CRASHED.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import event as database_events

from cdc_reactor import Batch, Context, Event, Notification, handles, notifies, subscribes
from table_handlers import votes
from table_handlers.votes import PostUpvoted, Vote
from workers import notifications, reputation
from workers.schema import metadata

__all__ = ["metadata"]

_CRASHES = os.environ["CRASHES"].split(",")
_CRASHED = Path(os.environ["CRASHED"])


class ReputationAdded(Event, topic="reputation.added.v1"):
    """Somebody's post was rewarded."""

    post_id: int
    voter_id: int


@handles(Vote, max_wait=0.0)
def score_votes(batch: Batch[Vote], ctx: Context) -> None:
    """Score votes as the sample does."""
    votes.score_votes(batch, ctx)
    _die_once("votes", ctx)


@subscribes(PostUpvoted, subscription="post-upvoted-reputation")
def add_reputation(event: PostUpvoted, ctx: Context) -> None:
    """Add reputation as the sample does, and tell."""
    reputation.add_reputation(event, ctx)
    ctx.publish(ReputationAdded(post_id=event.post_id, voter_id=event.voter_id), key=str(event.post_id))
    _die_once("reputation", ctx)


@notifies(PostUpvoted, subscription="post-upvoted-notify-author")
def tell_author(event: PostUpvoted, ctx: Context) -> Notification | None:
    """Tell the author as the sample does."""
    told: Notification | None = notifications.tell_author(event, ctx)
    _die_once("notification", ctx)
    return told


def _die_once(name: str, ctx: Context) -> None:
    mark = _CRASHED / f"crashed-{name}"
    if name not in _CRASHES or mark.exists():
        return

    def die(_: Any) -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    database_events.listen(ctx.session, "after_commit", die)
