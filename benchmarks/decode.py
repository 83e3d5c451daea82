"""decode: from bytes to a routed change, against `orjson.loads` of the same bytes.

"lazy" routes and reads no row, which is what a message costs that is filtered or counted; "dicts" reads both images as
wire values; "pydantic" reads them as rows, logical types converted, which orjson does not do at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from benchmarks.corpus import (
    FORMS,
    Content,
    as_rows,
    by_columns,
    by_orjson,
    by_rows,
    captured,
    check_equal,
    copies,
    router,
    size_of,
)
from benchmarks.harness import Case, Duel, Result, judge, play
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.reactor import Held

NAME = "decode"
MESSAGES = 50_000

_TARGETS: Mapping[str, float] = {
    "schema-on lazy": 3.5,
    "schema-on dicts": 2.2,
    "schema-off lazy": 1.5,
    "schema-off dicts": 0.8,
}


def run(rounds: int) -> Result:
    """Measure both forms, one after the other."""
    return Result(NAME, [case for form in FORMS for case in _measure(form, rounds)])


def _measure(form: str, rounds: int) -> list[Case]:
    _check(form)
    bodies = copies(form, MESSAGES)
    played = play(f"{NAME} {form}", _contenders(bodies), rounds)
    duels = [
        Duel(
            case=f"{form} {reading}",
            ours=reading,
            against="orjson",
            baseline="orjson",
            target=_TARGETS.get(f"{form} {reading}"),
        )
        for reading in ("lazy", "dicts", "pydantic")
    ]
    return [judge(NAME, duel, played, size_of(bodies)) for duel in duels]


def _contenders(bodies: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    # Loops of their own, so that none pays for a function call that the others do not make.
    route = router().route

    def loads() -> None:
        parse = orjson.loads
        for data in bodies:
            parse(data)

    def lazy() -> None:
        for data in bodies:
            route(Delivery(Message(data), None))

    def dicts() -> None:
        for data in bodies:
            held: Any = route(Delivery(Message(data), None))
            _ = held.subject.columns

    def pydantic() -> None:
        for data in bodies:
            held: Any = route(Delivery(Message(data), None))
            change = held.subject
            _ = change.before, change.after

    return {"orjson": loads, "lazy": lazy, "dicts": dicts, "pydantic": pydantic}


def _check(form: str) -> None:
    """Compare what both sides read: twice, because from the second time on the schema block is known."""
    bodies = captured(form) * 2
    theirs = [by_orjson(data) for data in bodies]
    check_equal(_routed(bodies, by_columns), theirs, f"{NAME} {form} dicts")
    check_equal(_routed(bodies, by_rows), [as_rows(content) for content in theirs], f"{NAME} {form} pydantic")


def _routed(bodies: Sequence[bytes], read: Callable[[Any], Content]) -> list[Content]:
    route = router().route
    found = []
    for data in bodies:
        held = route(Delivery(Message(data), None))
        assert isinstance(held, Held), f"a change of the corpus was not routed: {held}"
        found.append(read(held.subject))
    return found
