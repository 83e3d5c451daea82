"""From what was polled to figures: one consumer's run, and what two consumers' runs say together.

Only arithmetic; `pubsub` polls. Rates are of wall time, so that a round during which others had the processors says
nothing of them: what the whole machine used, less the consumer and the broker, tells. CPU times are less sensitive, and
the ratio of two that were taken in one round still less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from benchmarks.harness import Case, Figure

#: A run says nothing of a rate beside which others used more than this share of one processor.
OTHERS_SHARE = 0.3

OF_RATES = "times the messages a second"
OF_CPU = "times less CPU a message"

#: The broker limits a consumer while it has more than this share of one processor.
FEED_LIMIT = 0.9

#: The share of a backlog with which a run only warms up.
WARM_UP = 0.2


class Sample(NamedTuple):
    """What was seen at one instant: acknowledgements since the start, CPU seconds of the two and of everything."""

    at: float
    acked: int
    cpu: float
    feed_cpu: float
    busy: float


class Run(NamedTuple):
    """One consumer in one round; `problem` says why nothing was measured, shares are of one processor."""

    rate: float
    cpu_us: float
    share: float
    feed_share: float
    others_share: float
    problem: str = ""

    @classmethod
    def of(cls, samples: Sequence[Sample], count: int) -> Run:
        """Judge what was polled while a backlog of `count` was consumed: from its warm-up to just before its end."""
        if samples[-1].acked != count:
            return cls._void(f"{samples[-1].acked:,} of {count:,} were acknowledged")
        window = [sample for sample in samples if count * WARM_UP <= sample.acked < count]
        if len(window) < 2 or window[-1].acked == window[0].acked:
            return cls._void("over before it could be measured")
        first, last = window[0], window[-1]
        seconds, acked = last.at - first.at, last.acked - first.acked
        cpu, feed_cpu = last.cpu - first.cpu, last.feed_cpu - first.feed_cpu
        others = last.busy - first.busy - cpu - feed_cpu
        return cls(acked / seconds, cpu / acked * 1e6, cpu / seconds, feed_cpu / seconds, others / seconds)

    @classmethod
    def _void(cls, problem: str) -> Run:
        return cls(0.0, 0.0, 0.0, 0.0, 0.0, problem)

    @property
    def disturbance(self) -> str:
        """Say why its rate does not count; empty where it does."""
        if self.problem or self.others_share <= OTHERS_SHARE:
            return self.problem
        return f"others had {self.others_share:.2f} of a processor"


@dataclass(frozen=True, kw_only=True, slots=True)
class PubSubCase(Case):
    """A case with what belongs to streams: messages a second and shares of one processor, medians of the sound rounds.

    `feed_share` is the broker's while ours consumed, `feed_share_against` while the other did. Where it is near 1 the
    broker was the limit, and that consumer could do more. `messages` is our backlog in each round. `wall_ratio` is not
    used: `ratio` is one of rates, or of CPU time, as `unit` says.
    """

    rate: float | None = None
    rate_against: float | None = None
    share: float | None = None
    share_against: float | None = None
    feed_share: float | None = None
    feed_share_against: float | None = None
    messages_against: int = 0
    message_bytes: int = 0
    response_messages: int = 0
    response_bytes: int = 0
    version_against: str = ""
    note: str = ""

    @property
    def is_of_rates(self) -> bool:
        """Whether it compares messages a second, not CPU time."""
        return self.unit == OF_RATES


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """Two consumers of the same form of message, and how they did in each round: (ours, theirs)."""

    benchmark: str
    case: str
    against: str
    version_against: str
    played: Sequence[tuple[Run, Run]]
    messages: int
    messages_against: int
    message_bytes: int
    response_messages: int
    response_bytes: int

    def by_rate(self, target: float | None) -> PubSubCase:
        """Compare the messages a second, over the rounds in which nobody else had the processors."""
        why = [mine.disturbance or theirs.disturbance for mine, theirs in self.played]
        return self._judge(OF_RATES, target, why, lambda mine, theirs: mine.rate / theirs.rate)

    def by_cpu(self, target: float | None) -> PubSubCase:
        """Compare the CPU time of a message."""
        why = [mine.problem or theirs.problem for mine, theirs in self.played]
        return self._judge(OF_CPU, target, why, lambda mine, theirs: theirs.cpu_us / mine.cpu_us)

    def _judge(
        self, unit: str, target: float | None, why_void: Sequence[str], ratio: Callable[[Run, Run], float]
    ) -> PubSubCase:
        sound = [pair for pair, why in zip(self.played, why_void, strict=True) if not why]
        void = {number: why for number, why in enumerate(why_void, 1) if why}
        figure = Figure.of([ratio(*pair) for pair in sound]) if len(sound) >= max(1, len(void)) else None
        ours, theirs = map(_medians, zip(*sound, strict=True)) if figure else (None, None)
        return PubSubCase(
            benchmark=self.benchmark,
            case=self.case,
            against=self.against,
            unit=unit,
            ratio=figure and figure.median,
            spread=figure and (figure.q1, figure.q3),
            target=target,
            us=ours and ours.cpu_us,
            us_against=theirs and theirs.cpu_us,
            messages=self.messages,
            bytes=self.messages * self.message_bytes,
            rounds=len(sound),
            void_rounds=len(void),
            void=void,
            rate=ours and ours.rate,
            rate_against=theirs and theirs.rate,
            share=ours and ours.share,
            share_against=theirs and theirs.share,
            feed_share=ours and ours.feed_share,
            feed_share_against=theirs and theirs.feed_share,
            messages_against=self.messages_against,
            message_bytes=self.message_bytes,
            response_messages=self.response_messages,
            response_bytes=self.response_bytes,
            version_against=self.version_against,
            note="the broker was the limit: a lower bound" if ours and ours.feed_share > FEED_LIMIT else "",
        )


def _medians(runs: Sequence[Run]) -> Run:
    return Run(*(median(values) for values in zip(*(run[:5] for run in runs), strict=True)))
