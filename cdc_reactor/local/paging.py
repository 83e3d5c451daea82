"""Pages of lists: sorted by name; a token is the last name of the page before. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from cdc_reactor.local.refusals import invalid

T = TypeVar("T")

MAX_PAGE = 1_000


def page(things: Iterable[T], name: Callable[[T], str], *, size: int, token: str) -> tuple[list[T], str]:
    """Return one page and the token of the next, empty after the last."""
    if size < 0:
        raise invalid(f"Invalid page_size given (page_size={size}): it must not be negative.")
    wanted = min(size or MAX_PAGE, MAX_PAGE)
    rest = sorted((thing for thing in things if name(thing) > token), key=name)
    found = rest[:wanted]
    return found, name(found[-1]) if len(rest) > wanted else ""
