"""`python -m benchmarks NAME [--json] [--rounds N] [--quick]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import orjson
from rich.console import Console
from rich.table import Column, Table

from benchmarks import decode, memory, pubsub, replay
from benchmarks.harness import Case, Result, environment
from benchmarks.pubsub_figures import PubSubCase

_BENCHMARKS: Mapping[str, Callable[[int], Result]] = {
    decode.NAME: decode.run,
    replay.NAME: replay.run,
    memory.NAME: memory.run,
    pubsub.NAME: pubsub.run,
}

# Rounds that count, where nobody says how many; those of pubsub take longer.
_ROUNDS = 9
_PUBSUB_ROUNDS = 4
_QUICK_ROUNDS = 2


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "name", choices=(*_BENCHMARKS, "all"), metavar="NAME", help="decode, replay, memory, pubsub or all"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--rounds", type=_rounds, metavar="N", help=f"rounds that count (default {_ROUNDS}; pubsub {_PUBSUB_ROUNDS})"
    )
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_ROUNDS} rounds, to see that it runs")
    options = parser.parse_args()
    rounds = _QUICK_ROUNDS if options.quick and options.rounds is None else options.rounds
    names = list(_BENCHMARKS) if options.name == "all" else [options.name]
    result = _run(options.name, names, rounds)
    if options.json:
        sys.stdout.write(orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(result)


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return rounds


def _run(name: str, names: Sequence[str], rounds: int | None) -> Result:
    whole = Result(name)
    for each in names:
        found = _BENCHMARKS[each](rounds or (_PUBSUB_ROUNDS if each == pubsub.NAME else _ROUNDS))
        whole.cases.extend(found.cases)
        whole.missing.extend(found.missing)
    return whole


def _print(result: Result) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for name, unit in dict.fromkeys((case.benchmark, case.unit) for case in result.cases):
        console.print(_table(name, unit, [c for c in result.cases if (c.benchmark, c.unit) == (name, unit)]))
    streams = [case for case in result.cases if isinstance(case, PubSubCase) and case.is_of_rates]
    if streams:
        console.print(_streams(streams))
        versions = dict.fromkeys(f"{case.against}: {case.version_against}" for case in streams)
        console.print("; ".join(versions))
    for missing in result.missing:
        console.print(f"missing: {missing['case']} against {missing['against']}: {missing['why']}")
    facts = environment()
    libraries = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items() if number)
    console.print(f"Python {facts['python']} on {facts['cpus']} CPUs; {libraries}")


def _table(name: str, unit: str, cases: list[Case]) -> Table:
    table = Table(
        Column("case", no_wrap=True),
        Column("against", no_wrap=True),
        *map(
            _numeric,
            (
                "figure",
                "quartiles",
                "target",
                "µs ours",
                "theirs",
                "wall",
                "peak MB",
                "messages",
                "MB",
                "rounds",
                "void",
            ),
        ),
        title=f"{name}: {unit}",
        title_justify="left",
    )
    for case in cases:
        table.add_row(
            case.case,
            case.against,
            _show(case.figure),
            "·" if case.spread is None else f"{case.spread[0]:.2f} … {case.spread[1]:.2f}",
            _target(case),
            _show(case.us),
            _show(case.us_against),
            _show(case.wall_ratio),
            _show(case.peak_mb),
            f"{case.messages:,}",
            f"{case.bytes / 1e6:,.0f}",
            str(case.rounds),
            str(case.void_rounds or "·"),
        )
    return table


def _streams(cases: Sequence[PubSubCase]) -> Table:
    """Say how fast each was in the rounds that count for rates, and what the processors did meanwhile."""
    table = Table(
        Column("case", no_wrap=True),
        Column("against", no_wrap=True),
        *map(_numeric, ("ours/s", "theirs", "CPU ours", "theirs", "broker's", "theirs", "messages", "theirs", "bytes")),
        title=f"messages a second, at most {cases[0].response_messages} or {cases[0].response_bytes >> 20} MiB a "
        "response unless stated otherwise; CPU in processors; messages of a round",
        title_justify="left",
    )
    for case in cases:
        rates = (_count(case.rate), _count(case.rate_against))
        shares = map(_show, (case.share, case.share_against, case.feed_share, case.feed_share_against))
        counts = (_count(case.messages), _count(case.messages_against), _count(case.message_bytes))
        table.add_row(case.case, case.against, *rates, *shares, *counts)
    return table


def _count(value: float | None) -> str:
    return "·" if value is None else f"{value:,.0f}"


def _target(case: Case) -> str:
    if case.target is None:
        return "·"
    sign = "≤" if case.target_is_limit else "≥"
    verdict = {True: "met", False: "[bold]missed[/bold]", None: "not measured"}[case.is_met]
    return f"{sign} {case.target:g} {verdict}"


def _show(value: float | None) -> str:
    return "·" if value is None else f"{value:.2f}"


def _numeric(header: str) -> Column:
    return Column(header, justify="right")


if __name__ == "__main__":
    main()
