"""Changes of public.visits: keep which pages were visited when, and clean up when the table is emptied.

The table has no key: nothing tells its rows apart, so all of it is one lane, and we must say what makes two visits the
same: the page and the microsecond.
"""

from sqlalchemy import delete

from cdc_reactor import Batch, Context, Create, MicroTimestamp, Row, Truncate, handles
from table_handlers.schema import page_visits, upsert


class Visit(Row, table="public.visits", key=()):
    """A look at a page."""

    #: timestamp without time zone: without its schema a mere number, of microseconds.
    at: MicroTimestamp | None = None
    page: str | None = None


@handles(Visit, ops=(Create, Truncate), max_size=500, max_wait=2.0)
def keep_visits(batch: Batch[Visit], ctx: Context) -> None:
    """Copy visits in batches of up to 500; a truncate comes alone, after all that was before it."""
    visits = []
    for change in batch:
        match change:
            case Create(after=Visit(at=at, page=page)) if at is not None and page is not None:
                visits.append({"page": page, "at": at})
            case Truncate():
                ctx.session.execute(delete(page_visits))
    upsert(ctx.session, page_visits, visits)
