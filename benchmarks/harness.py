"""Rounds and statistics: contenders take turns in one process, and only what ran in the same round is compared.

A machine that others use is never twice the same, so a single time means little; the ratio of two times taken within a
second of each other means much more. CPU time decides, wall time is watched: where it is far above, somebody else had
the processor (and its cache), and that round is void.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from platform import python_version
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeAlias

#: A run is disturbed where its wall time is more than this multiple of its CPU time, beyond a few milliseconds.
WALL_OVER_CPU = 1.5
WALL_SLACK_SECONDS = 0.005

#: A round is void where its baseline is further than this share from the median of that baseline.
BASELINE_DRIFT = 0.15

_LIBRARIES = ("cdc-reactor", "msgspec", "orjson", "pydantic", "pydantic-core", "bytewax")


class Timing(NamedTuple):
    """What one run of one contender took, in seconds."""

    cpu: float
    wall: float

    @property
    def is_disturbed(self) -> bool:
        """Whether something else had the processor for a good part of it."""
        return self.wall > self.cpu * WALL_OVER_CPU + WALL_SLACK_SECONDS


#: What is measured, by name: each call handles the whole corpus once.
Contenders: TypeAlias = Mapping[str, Callable[[], object]]
#: The timings of one round, by contender.
Round: TypeAlias = Mapping[str, Timing]


class Figure(NamedTuple):
    """A median and the quartiles about it."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, _, q3 = quantiles(values, n=4, method="inclusive")
        return cls(median(values), q1, q3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """How much one run of a contender handles."""

    messages: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """Which two contenders are compared, under which names, and the ratio that we want."""

    case: str
    ours: str
    against: str
    baseline: str
    target: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One line of a result, whose `figure` is a ratio, a growth or a time, as `unit` says; `spread` has its quartiles.

    `ratio` is their time by ours, each within one round: above 1 we are faster. `growth` is the peak memory with a
    large file by that with a small one. Times are microseconds of CPU a message. `void` says of each round that was
    dropped why.
    """

    benchmark: str
    case: str
    against: str
    unit: str = "times as fast"
    ratio: float | None = None
    growth: float | None = None
    spread: tuple[float, float] | None
    target: float | None
    target_is_limit: bool = False
    us: float | None = None
    us_against: float | None = None
    wall_ratio: float | None = None
    peak_mb: float | None = None
    messages: int = 0
    bytes: int = 0
    rounds: int = 0
    void_rounds: int = 0
    void: Mapping[int, str] = field(default_factory=dict)

    @property
    def figure(self) -> float | None:
        """What the target speaks of; None where every round was void."""
        return next((figure for figure in (self.ratio, self.growth, self.us) if figure is not None), None)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is no target, or no figure."""
        if self.target is None or self.figure is None:
            return None
        return self.figure <= self.target if self.target_is_limit else self.figure >= self.target

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "met": self.is_met, "void": {str(n): why for n, why in self.void.items()}}


@dataclass(slots=True)
class Result:
    """What a benchmark found; `missing` names the cases that could not be run here, and why."""

    benchmark: str
    cases: list[Case] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, with what it was measured on."""
        return {
            "benchmark": self.benchmark,
            "cases": [case.to_json() for case in self.cases],
            "missing": self.missing,
            **environment(),
        }


def environment() -> dict[str, Any]:
    """Say what this was measured with."""
    return {"python": python_version(), "cpus": cpu_count(), "libraries": {name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def say(text: str) -> None:
    """Tell whoever waits how it goes on."""
    print(text, file=sys.stderr, flush=True)


def clock(run: Callable[[], object]) -> Timing:
    """Run once and time it, with no garbage of others about."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def play(title: str, contenders: Contenders, rounds: int) -> list[Round]:
    """Let every contender run once in each round, each round beginning with another; the first is not counted."""
    names = list(contenders)
    played: list[Round] = []
    for number in range(rounds + 1):
        say(f"{title}: {f'round {number} of {rounds}' if number else 'warming up'}")
        first = number % len(names)
        timings = {name: clock(contenders[name]) for name in (*names[first:], *names[:first])}
        if number:
            played.append(timings)
    return played


def judge(benchmark: str, duel: Duel, played: Sequence[Round], corpus: Corpus) -> Case:
    """Compare two contenders over the rounds that are not void; no figure where these are the fewer."""
    void = _void(duel, played)
    rounds = [timings for number, timings in enumerate(played, 1) if number not in void]
    sound = rounds if len(rounds) >= len(void) else []
    ratio = Figure.of([t[duel.baseline].cpu / t[duel.ours].cpu for t in sound]) if sound else None
    return Case(
        benchmark=benchmark,
        case=duel.case,
        against=duel.against,
        ratio=ratio and ratio.median,
        spread=ratio and (ratio.q1, ratio.q3),
        target=duel.target,
        us=_us(duel.ours, sound, corpus),
        us_against=_us(duel.baseline, sound, corpus),
        wall_ratio=median(t[duel.baseline].wall / t[duel.ours].wall for t in sound) if sound else None,
        messages=corpus.messages,
        bytes=corpus.size_bytes,
        rounds=len(rounds),
        void_rounds=len(void),
        void=void,
    )


def _us(name: str, sound: Sequence[Round], corpus: Corpus) -> float | None:
    return median(timings[name].cpu for timings in sound) / corpus.messages * 1e6 if sound else None


def _void(duel: Duel, played: Sequence[Round]) -> dict[int, str]:
    """Say of each void round why it is."""
    usual = median(timings[duel.baseline].cpu for timings in played)
    void = {}
    for number, timings in enumerate(played, 1):
        disturbed = next((name for name in (duel.ours, duel.baseline) if timings[name].is_disturbed), None)
        drift = timings[duel.baseline].cpu / usual - 1
        if disturbed is not None:
            void[number] = f"{disturbed}: wall {timings[disturbed].wall / timings[disturbed].cpu:.2f} times CPU"
        elif abs(drift) > BASELINE_DRIFT:
            void[number] = f"{duel.baseline}: {drift:+.0%} from its median"
    return void
