"""What people are told: a welcome, and that others like what they wrote."""

from cdc_reactor import Context, Notification, notifies
from table_handlers.users import UserCreated
from table_handlers.votes import PostUpvoted
from workers.reputation import author_of


@notifies(UserCreated, subscription="user-created-welcome")
def welcome(event: UserCreated, ctx: Context) -> Notification:  # noqa: ARG001 - every worker is given its context
    """Welcome whoever joined."""
    return Notification(
        type="welcome",
        recipients=(str(event.user_id),),
        context={"handle": event.handle},
        dedupe_key=f"welcome:{event.user_id}",
    )


@notifies(PostUpvoted, subscription="post-upvoted-notify-author")
def tell_author(event: PostUpvoted, ctx: Context) -> Notification | None:
    """Tell the author of a post that it is liked: once a day at most, however many like it."""
    author = author_of(ctx.session, event.post_id)
    if author == event.voter_id:
        return None
    return Notification(
        type="post-upvoted",
        recipients=(str(author),),
        context={"post_id": event.post_id},
        dedupe_key=f"post-upvoted:{event.post_id}",
    )
