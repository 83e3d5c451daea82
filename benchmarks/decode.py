"""decode: from bytes to a routed change, against `orjson.loads` of the same bytes.

What is timed is the product's own `CdcRouter.route_all`, on lists of 256 deliveries as the replay takes them in: bytes
are parsed, the change is made, the route of its table is found, and both stand in the list that the reactor takes. What
the reactor makes of it (lanes, batches, settlements) belongs to the benchmark `replay`.

The Messages and Deliveries were made before, as the bytes were that orjson reads: it is the transport that makes them,
whoever reads them then. In the cases "with messages made" a Message and a Delivery are made of all bytes on the clock,
too, so that nobody has to guess what is left out.

"lazy" routes and reads no row, which is what a message costs that is filtered or counted; "dicts" reads both images as
wire values; "pydantic" reads them as rows, logical types converted, which orjson does not do at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
    delivered,
    router,
    size_of,
)
from benchmarks.harness import Case, Duel, Result, judge, play
from cdc_reactor.messages import Delivery
from cdc_reactor.reactor import Held
from cdc_reactor.routing import CdcRouter

NAME = "decode"
MESSAGES = 50_000

#: As many deliveries as the replay takes in at once.
_AT_ONCE = 256

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
    contenders = _contenders(form, bodies)
    played = play(f"{NAME} {form}", contenders, rounds)
    duels = [
        Duel(
            case=f"{form} {reading}",
            ours=reading,
            against="orjson",
            baseline="orjson",
            target=_TARGETS.get(f"{form} {reading}"),
        )
        for reading in contenders
        if reading != "orjson"
    ]
    return [judge(NAME, duel, played, size_of(bodies)) for duel in duels]


def _contenders(form: str, bodies: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    parts = [bodies[at : at + _AT_ONCE] for at in range(0, len(bodies), _AT_ONCE)]
    made = list(map(delivered, parts))
    return {
        "orjson": partial(_load, bodies),
        "lazy": partial(_route, _warm(form), made),
        "dicts": partial(_read_columns, _warm(form), made),
        "pydantic": partial(_read_rows, _warm(form), made),
        "lazy with messages made": partial(_make_and_route, _warm(form), parts),
        "dicts with messages made": partial(_make_and_read_columns, _warm(form), parts),
    }


# Loops of their own, so that none pays for a function call that the others do not make.


def _load(bodies: Iterable[bytes]) -> None:
    parse = orjson.loads
    for data in bodies:
        parse(data)


def _route(router: CdcRouter, made: Iterable[Sequence[Delivery]]) -> None:
    for deliveries in made:
        router.route_all(deliveries, [])


def _read_columns(router: CdcRouter, made: Iterable[Sequence[Delivery]]) -> None:
    for deliveries in made:
        changes: list[Any] = []
        router.route_all(deliveries, changes)
        for change in changes:
            _ = change.columns


def _read_rows(router: CdcRouter, made: Iterable[Sequence[Delivery]]) -> None:
    for deliveries in made:
        changes: list[Any] = []
        router.route_all(deliveries, changes)
        for change in changes:
            _ = change.before, change.after


def _make_and_route(router: CdcRouter, parts: Iterable[Sequence[bytes]]) -> None:
    for bodies in parts:
        router.route_all(delivered(bodies), [])


def _make_and_read_columns(router: CdcRouter, parts: Iterable[Sequence[bytes]]) -> None:
    for bodies in parts:
        changes: list[Any] = []
        router.route_all(delivered(bodies), changes)
        for change in changes:
            _ = change.columns


def _warm(form: str) -> CdcRouter:
    """Make a router that knows the tables: what it meets for the first time it hands on as Held."""
    warm = router()
    warm.route_all(delivered(captured(form)), [])
    return warm


def _check(form: str) -> None:
    """Compare what both sides read: three times, because at first neither tables nor schema blocks are known."""
    bodies = captured(form) * 3
    theirs = [by_orjson(data) for data in bodies]
    check_equal(_routed(bodies, by_columns), theirs, f"{NAME} {form} dicts")
    check_equal(_routed(bodies, by_rows), [as_rows(content) for content in theirs], f"{NAME} {form} pydantic")


def _routed(bodies: Sequence[bytes], read: Callable[[Any], Content]) -> list[Content]:
    routed: list[Any] = []
    deliveries = delivered(bodies)
    router().route_all(deliveries, routed)
    assert len(routed) == len(bodies), f"{len(routed):,} answers for {len(bodies):,} messages"
    return [read(_change(*each)) for each in zip(deliveries, routed, strict=True)]


def _change(delivery: Delivery, answer: Any) -> Any:
    change = answer.subject if isinstance(answer, Held) else answer
    table = change.table_id.table
    assert [h.name for h in answer.route.consumers] == [table.removesuffix("s")], f"{delivery} went to {answer.route}"
    return change
