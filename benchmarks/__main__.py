"""`python -m benchmarks NAME [--json] [--rounds N]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

import orjson
from rich.console import Console
from rich.table import Column, Table

from benchmarks import decode, memory, replay
from benchmarks.harness import Case, Result, environment

_BENCHMARKS: Mapping[str, Callable[[int], Result]] = {
    decode.NAME: decode.run,
    replay.NAME: replay.run,
    memory.NAME: memory.run,
}


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*_BENCHMARKS, "all"), metavar="NAME", help="decode, replay, memory or all")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=_rounds, default=9, metavar="N", help="rounds that count (default 9)")
    options = parser.parse_args()
    result = _run_all(options.rounds) if options.name == "all" else _BENCHMARKS[options.name](options.rounds)
    if options.json:
        sys.stdout.write(orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(result)


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("at least one round")
    return rounds


def _run_all(rounds: int) -> Result:
    whole = Result("all")
    for run in _BENCHMARKS.values():
        found = run(rounds)
        whole.cases.extend(found.cases)
        whole.missing.extend(found.missing)
    return whole


def _print(result: Result) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for name, unit in dict.fromkeys((case.benchmark, case.unit) for case in result.cases):
        console.print(_table(name, unit, [c for c in result.cases if (c.benchmark, c.unit) == (name, unit)]))
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
