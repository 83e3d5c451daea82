"""replay: from a file to settled messages, against loops and flows that stop at parsed JSON.

Ours is the real thing, everything but the command line: captures reader, router, reactor, executor, a handler for each
table that does nothing, settlements, counts. The baseline only reads lines and calls `orjson.loads`: no batches, no
order, no retries, nothing settled.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from benchmarks.corpus import (
    FORMS,
    READINGS,
    Content,
    Reading,
    User,
    by_columns,
    by_orjson,
    captured,
    check_equal,
    content_of,
    endless,
    handlers,
    iterate,
    router,
)
from benchmarks.harness import Case, Corpus, Duel, Figure, Result, Round, judge, play
from cdc_reactor.captures import find_captures
from cdc_reactor.execution import Executor
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.reactor import Held, Outcome, Reactor, Route
from cdc_reactor.replay import InlineRunner, Replay
from cdc_reactor.report import Report

NAME = "replay"
MESSAGES = 50_000

#: As many as the replay takes in at once.
_CHUNK = 256

_TARGETS: Mapping[tuple[str, str], float] = {
    ("schema-on lazy", "orjson"): 1.5,
    ("schema-on dicts", "orjson"): 1.3,
    ("schema-on pydantic", "orjson"): 1.0,
    ("schema-off lazy", "orjson"): 0.6,
    ("schema-on lazy", "bytewax"): 3.0,
    ("schema-on dicts", "bytewax"): 3.0,
    ("schema-off lazy", "bytewax"): 1.5,
    ("schema-off dicts", "bytewax"): 1.5,
}
_REACTOR_TARGET_US = 2.0


def run(rounds: int) -> Result:
    """Measure both forms, then the reactor alone."""
    result = Result(NAME)
    others = _others(result)
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder, f"{form}.ndjson")
            corpus = write(path, form, MESSAGES)
            _check(form, Path(folder, "check.ndjson"), others)
            played = play(f"{NAME} {form}", _contenders(path, others), rounds)
            path.unlink()
            duels = (_duel(form, reading, against) for against in ("orjson", *others) for reading in READINGS)
            result.cases.extend(judge(NAME, duel, played, corpus) for duel in duels)
    result.cases.append(_reactor_alone(rounds))
    return result


def write(path: Path, form: str, count: int) -> Corpus:
    """Write so many captured changes to a file, one a line; return how much it holds."""
    size_bytes = 0
    with path.open("wb") as file:
        for data in islice(endless(form), count):
            size_bytes += file.write(data + b"\n")
    return Corpus(messages=count, size_bytes=size_bytes)


def replay(path: Path, read: Reading = iterate) -> Report:
    """Replay a file through handlers that read it so; AssertionError unless every message was handled and settled."""
    executor = Executor(None)
    try:
        report = Replay(router(read), InlineRunner(executor.run)).run(find_captures([str(path)]))
    finally:
        executor.close()
    handled = sum(counts.changes for counts in report.total.handlers.values())
    assert report.exit_status == 0, f"the replay had problems: {report.problems}"
    assert handled == report.total.messages, f"{handled:,} of {report.total.messages:,} messages were handled"
    return report


def _others(result: Result) -> dict[str, Callable[..., None]]:
    """Find the flows to compare with; name them as missing where they cannot be run."""
    if find_spec("bytewax") is None:
        why = "bytewax is not installed (pip install 'cdc-reactor[bench]'; it has no wheel from Python 3.13 on)"
        names = [f"{form} {reading}" for form in FORMS for reading in READINGS]
        for against in ("bytewax", "bytewax lean"):
            result.missing.extend({"benchmark": NAME, "case": case, "against": against, "why": why} for case in names)
        return {}
    from benchmarks.bytewax_flow import run_keyed, run_lean  # noqa: PLC0415 - its package is the extra `bench`

    return {"bytewax": run_keyed, "bytewax lean": run_lean}


def _contenders(path: Path, others: Mapping[str, Callable[..., None]]) -> dict[str, Callable[[], object]]:
    def loads() -> None:
        parse = orjson.loads
        with path.open("rb") as lines:
            for line in lines:
                parse(line)

    def replays(read: Reading) -> Callable[[], object]:
        return lambda: replay(path, read)

    def flows(flow: Callable[..., None]) -> Callable[[], object]:
        return lambda: flow(path)

    ours = {name: replays(read) for name, read in READINGS.items()}
    theirs = {name: flows(flow) for name, flow in others.items()}
    return {"orjson": loads, **ours, **theirs}


def _duel(form: str, reading: str, against: str) -> Duel:
    case = f"{form} {reading}"
    return Duel(case=case, ours=reading, against=against, baseline=against, target=_TARGETS.get((case, against)))


def _check(form: str, path: Path, others: Mapping[str, Callable[..., None]]) -> None:
    """Compare what each side hands on, table by table and in order, on a file of more than one batch."""
    count = write(path, form, 20 * len(captured(form))).messages
    with path.open("rb") as lines:
        expected = _by_table(map(by_orjson, lines))
    found: list[Content] = []
    replay(path, lambda batch: found.extend(map(by_columns, batch)))
    assert len(found) == count, f"{len(found):,} changes of {count:,} messages reached a handler"
    _check_tables(_by_table(found), expected, f"{NAME} {form}")
    for name, flow in others.items():
        taken: list[Any] = []
        flow(path, taken.extend)
        _check_tables(_by_table(map(content_of, taken)), expected, f"{name} {form}")


def _by_table(contents: Iterable[Content]) -> dict[str, list[Content]]:
    tables: defaultdict[str, list[Content]] = defaultdict(list)
    for content in contents:
        tables[content.table].append(content)
    return tables


def _check_tables(ours: Mapping[str, list[Content]], theirs: Mapping[str, list[Content]], what: str) -> None:
    assert ours.keys() == theirs.keys(), f"{what}: tables {sorted(ours)} and {sorted(theirs)}"
    for table, contents in ours.items():
        check_equal(contents, theirs[table], f"{what} {table}")


def _reactor_alone(rounds: int) -> Case:
    """Measure receive_all, ready, complete and settlements, with a route that decodes nothing."""
    deliveries = [Delivery(Message(b"{}"), n) for n in range(MESSAGES)]
    played = play(f"{NAME} reactor", {"reactor": lambda: _drive(deliveries)}, rounds)
    void = {n: "disturbed" for n, timings in enumerate(played, 1) if timings["reactor"].is_disturbed}
    figures = list(_us_of([t for n, t in enumerate(played, 1) if n not in void]))
    us = Figure.of(figures) if len(figures) > len(void) else None
    return Case(
        benchmark=NAME,
        case="reactor alone",
        against="nothing",
        unit="µs a change",
        spread=us and (us.q1, us.q3),
        target=_REACTOR_TARGET_US,
        target_is_limit=True,
        us=us and us.median,
        messages=MESSAGES,
        rounds=len(figures),
        void_rounds=len(void),
        void=void,
    )


def _us_of(played: Iterable[Round]) -> Iterator[float]:
    return (timings["reactor"].cpu / MESSAGES * 1e6 for timings in played)


def _drive(deliveries: list[Delivery]) -> None:
    """Take deliveries, each of a row of its own, through a reactor as the replay does: one batch at a time."""
    (handler,) = (h for h in handlers(iterate) if h.row is User)
    route = Route("users", (handler,), lambda number: number)
    reactor = Reactor(lambda delivery: Held(delivery, delivery.ack_id, route))
    settled = 0
    for at in range(0, len(deliveries), _CHUNK):
        reactor.receive_all(deliveries[at : at + _CHUNK], 0.0)
        is_last = at + _CHUNK >= len(deliveries)
        while works := reactor.ready(0.0, limit=1, flush=is_last):
            for work in works:
                reactor.complete(work, Outcome.acked(len(work.held)), 0.0)
        settled += len(reactor.settlements())
    assert settled == len(deliveries), "every delivery is settled"
