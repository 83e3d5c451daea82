"""Changes of public.users: announce arrivals, new names and departures, keep author cards, synchronise the CRM.

The table has REPLICA IDENTITY DEFAULT: an update comes without the row as it was, a delete with its key only. Once it
has REPLICA IDENTITY FULL, renames are announced; nothing here needs to change for that.
"""

from datetime import datetime

from sqlalchemy import delete

from cdc_reactor import Batch, Context, Create, Delete, Event, Handler, Retry, Row, Truncate, Update, handles
from table_handlers.crm import Crm, CrmBusy, CrmInMemory
from table_handlers.schema import author_cards, upsert


class User(Row, table="public.users"):
    """The columns of public.users that are used here."""

    id: int
    handle: str
    email: str | None = None
    karma: int | None = 0
    #: timestamptz: arrives as ISO text with its zone, so a plain datetime is enough.
    joined: datetime | None = None


class UserCreated(Event, topic="user.created.v1", key="user_id"):
    """Somebody joined the forum."""

    user_id: int
    handle: str


class UserRenamed(Event, topic="user.renamed.v1"):
    """A user has a new handle."""

    user_id: int
    old: str
    new: str


class UserDeleted(Event, topic="user.deleted.v1"):
    """A user is gone."""

    user_id: int


@handles(User)
def announce(batch: Batch[User], ctx: Context) -> None:
    """Publish UserCreated for each arrival, UserRenamed for each new handle, UserDeleted for each departure."""
    for change in batch:
        match change:
            case Create(after=new):
                ctx.publish(UserCreated(user_id=new.id, handle=new.handle))
            case Update(before=User() as old, after=new) if change.is_changed("handle"):
                ctx.publish(UserRenamed(user_id=new.id, old=old.handle, new=new.handle), key=str(new.id))
            case Delete(before=gone):
                ctx.publish(UserDeleted(user_id=gone.id), key=str(gone.id))


@handles(User)
def keep_author_cards(batch: Batch[User], ctx: Context) -> None:
    """Copy what a page shows of an author into author_cards, and clean up after users who left.

    With `snapshot=True` those who were there before the connector came would get their card from its snapshot.
    """
    cards: dict[int, dict[str, object] | None] = {}
    for change in batch:
        match change:
            case Create(after=user) | Update(after=user):
                cards[user.id] = {"id": user.id, "handle": user.handle}
            case Delete(before=gone):
                cards[gone.id] = None
            case Truncate():
                ctx.session.execute(delete(author_cards))
    # The last state of each user is all that matters, so a batch costs two statements.
    gone_ids = [user_id for user_id, card in cards.items() if card is None]
    if gone_ids:
        ctx.session.execute(delete(author_cards).where(author_cards.c.id.in_(gone_ids)))
    upsert(ctx.session, author_cards, [card for card in cards.values() if card is not None])


def crm_sync(crm: Crm) -> Handler[User]:
    """Make the handler that synchronises users to a CRM; a test gives it a CRM of its own."""

    @handles(User, max_size=20, max_attempts=8, timeout=30.0)
    def sync_to_crm(batch: Batch[User], ctx: Context) -> None:
        """Save or remove a contact for each change; what the CRM is too busy for comes again.

        The others are run once more without those, hence the rule that each request may be repeated.
        """
        busy = [change for change in batch if not _is_synchronised(change, crm)]
        if busy:
            ctx.log.info("the CRM is busy, %d of %d users wait", len(busy), len(batch))
            raise Retry("the CRM is busy", changes=busy, delay=5)

    return sync_to_crm


def _is_synchronised(change: object, crm: Crm) -> bool:
    try:
        match change:
            case Create(after=user) | Update(after=user):
                crm.save_contact(user.id, user.handle, user.email)
            case Delete(before=gone):
                crm.remove_contact(gone.id)
    except CrmBusy:
        return False
    return True


sync_to_crm = crm_sync(CrmInMemory())
