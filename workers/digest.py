"""The personalised digest: heavy, so a process of its own runs it; its layout is an experiment."""

from datetime import date

from cdc_reactor import Context, Event, Notification, notifies


class DigestDue(Event, topic="digest.due.v1"):
    """A user is to get the digest of a day."""

    user_id: int
    day: date


@notifies(
    DigestDue,
    subscription="digest-due-personalized",
    group="personalized-digest",
    dedicated=True,
    max_messages=1,
    max_attempts=5,
    timeout=120,
)
def send_digest(event: DigestDue, ctx: Context) -> Notification:
    """Send the digest in the layout that the user is allocated to."""
    layout = ctx.experiments.allocate("digest-layout", user_id=str(event.user_id), default="list")
    return Notification(
        type="digest",
        recipients=(str(event.user_id),),
        context={"day": event.day.isoformat(), "layout": layout},
        dedupe_key=f"digest:{event.user_id}:{event.day}",
    )
