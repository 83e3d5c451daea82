"""pubsub: from the broker's backlog to confirmed acknowledgements, against everybody else who consumes in Python.

Every consumer is a process that is looked at from outside. Ours is the command `cdc-reactor run` as it is: gRPC stream,
leases, decoding, lanes, batches of at most 250, a handler for each table that does nothing, acknowledgements that are
confirmed. Theirs is a callback that parses the JSON and acknowledges. All get the same messages off the same broker,
with the same ordering keys, through ordered subscriptions; nobody but us keeps the order of a row after a failure.

In a round every consumer in turn gets its backlog anew. What is measured lies between a fifth of the backlog and its
last polled instant before the end: messages that the broker has seen acknowledged, by time and by the consumer's CPU
time. A round counts only where all of it was acknowledged; for rates, only where nobody else had the processors. Before
that, each consumer was given a smaller backlog, and what its handlers saw was compared with what was published.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.corpus import content_of
from benchmarks.harness import Result, say
from benchmarks.pubsub_consumers import CONTENDERS, OURS, Contender
from benchmarks.pubsub_environments import Unavailable
from benchmarks.pubsub_feed import Feed
from benchmarks.pubsub_figures import Pairing, PubSubCase, Run, Sample
from benchmarks.pubsub_messages import FORMS, Form, mean_size_bytes, messages
from benchmarks.pubsub_processes import Process, busy_seconds

NAME = "pubsub"

#: What a response on a stream has at most, beside the form's number of messages.
RESPONSE_BYTES = 1 << 20

# About as long, in seconds, as each backlog lasts.
_SECONDS = 1.6
_MARGIN_SECONDS = 30.0
_POLL_SECONDS = 0.03

_CHECKED_MESSAGES = 26 * 40

# By form and by whom we compare with: times their rate, and times less CPU.
_TARGETS: Mapping[tuple[str, str], tuple[float, float | None]] = {
    ("2 KB", "subscribe"): (3.5, 3.0),
    ("3 KB schema-on", "subscribe"): (3.5, 3.0),
    ("8 KB", "subscribe"): (2.5, 2.0),
    ("2 KB", "rele"): (4.0, None),
    ("8 KB", "rele"): (4.0, None),
}


# Nobody but the stock client takes part in the other forms: they would tell nothing new of the others, and cost time.
_FORMS_OF_ALL = ("2 KB", "8 KB")


@dataclass(frozen=True, slots=True)
class _Place:
    """A consumer that is up, beside its backlog of so many messages."""

    contender: Contender
    subscription: str
    process: Process
    count: int


def run(rounds: int) -> Result:
    """Measure every form of message, with everybody who can be run here."""
    result = Result(NAME)
    contenders = list(_available(result))
    with tempfile.TemporaryDirectory() as folder, Feed(Path(folder)) as feed:
        for form in FORMS:
            feed.limit_responses(form.per_response, RESPONSE_BYTES)
            invited = contenders if form.name in _FORMS_OF_ALL else contenders[:2]
            contest = _Contest(form, invited, feed, Path(folder))
            contest.check()
            result.cases.extend(contest.cases(rounds))
    return result


def _available(result: Result) -> Iterator[Contender]:
    """Give the contenders that can be run here; name the others as missing."""
    for contender in CONTENDERS:
        try:
            contender.python()
        except Unavailable as error:
            why = {"benchmark": NAME, "against": contender.name, "why": str(error)}
            result.missing.extend({"case": name, **why} for name in _FORMS_OF_ALL)
        else:
            yield contender


class _Contest:
    """One form of message and all who consume it."""

    def __init__(self, form: Form, contenders: Sequence[Contender], feed: Feed, folder: Path) -> None:
        self._form = form
        self._contenders = contenders
        self._feed = feed
        self._folder = folder
        self._title = f"{NAME} {form.name}"

    def check(self) -> None:
        """Let every consumer have the same messages; AssertionError unless each saw all, and read them alike."""
        say(f"{self._title}: comparing what they see")
        published = messages(self._form, _CHECKED_MESSAGES)
        expected = Counter(_text(content_of(orjson.loads(message.data))) for message in published)
        with ExitStack() as stack:
            started = [self._start("check", contender, stack, len(published)) for contender in self._contenders]
            for place in started:
                self._until_done(place)
        for place in started:
            seen = self._seen(place.subscription).read_bytes().splitlines()
            _compare(Counter(map(_seen_text, seen)), expected, f"{self._title}, {place.contender.name}")
            self._feed.remove(place.subscription)

    def cases(self, rounds: int) -> list[PubSubCase]:
        """Play the rounds; return a case of the rate and one of the CPU time against each of the others."""
        with ExitStack() as stack:
            places = [self._open(contender, stack) for contender in self._contenders]
            played = [self._round(number, rounds, places) for number in range(1, rounds + 1)]
        for place in places:
            self._feed.remove(place.subscription)
        ours = next(place for place in places if place.contender.name == OURS)
        pairings = (self._pairing(ours, place, played) for place in places if place is not ours)
        return [case for pairing in pairings for case in _cases(pairing)]

    def _open(self, contender: Contender, stack: ExitStack) -> _Place:
        count = round(contender.messages_a_second * self._form.ease * _SECONDS)
        place = self._start("rate", contender, stack, count)
        # The first delivery, with all that a start costs, is its warm-up.
        self._until_done(place)
        return place

    def _start(self, purpose: str, contender: Contender, stack: ExitStack, count: int) -> _Place:
        subscription = re.sub(r"\W+", "-", f"{purpose}-{contender.name}-{self._form.name}")
        self._feed.create(subscription)
        self._feed.publish(subscription, self._form, count)
        seen = self._seen(subscription) if purpose == "check" else None
        process = contender.start(subscription, self._feed.address, self._folder, seen=seen)
        stack.enter_context(process)
        return _Place(contender, subscription, process, count)

    def _seen(self, subscription: str) -> Path:
        return self._folder / f"{subscription}.ndjson"

    def _round(self, number: int, rounds: int, places: Sequence[_Place]) -> Mapping[str, Run]:
        say(f"{self._title}: round {number} of {rounds}")
        first = number % len(places)
        return {place.contender.name: self._measure(place) for place in (*places[first:], *places[:first])}

    def _measure(self, place: _Place) -> Run:
        """Deliver a backlog anew and look on until all of it is acknowledged."""
        begun = self._feed.acked(place.subscription)
        self._feed.rewind(place.subscription)
        samples = [self._sample(place, begun)]
        deadline = samples[0].at + _patience(place)
        while samples[-1].acked < place.count and samples[-1].at < deadline:
            place.process.check()
            time.sleep(_POLL_SECONDS)
            samples.append(self._sample(place, begun))
        return Run.of(samples, place.count)

    def _sample(self, place: _Place, begun: int) -> Sample:
        acked = self._feed.acked(place.subscription) - begun
        cpu, feed_cpu = place.process.cpu_seconds(), self._feed.process.cpu_seconds()
        return Sample(time.perf_counter(), acked, cpu, feed_cpu, busy_seconds())

    def _until_done(self, place: _Place) -> None:
        """Wait until everything of a backlog was acknowledged once; AssertionError where that takes too long."""
        deadline = time.monotonic() + _patience(place)
        while (acked := self._feed.acked(place.subscription)) < place.count:
            place.process.check()
            assert time.monotonic() < deadline, (
                f"{self._title}, {place.contender.name}: {acked:,} of {place.count:,} were acknowledged"
            )
            time.sleep(_POLL_SECONDS)

    def _pairing(self, ours: _Place, other: _Place, played: Sequence[Mapping[str, Run]]) -> Pairing:
        return Pairing(
            benchmark=NAME,
            case=self._form.name,
            against=other.contender.name,
            version_against=other.contender.version,
            played=[(runs[OURS], runs[other.contender.name]) for runs in played],
            messages=ours.count,
            messages_against=other.count,
            message_bytes=mean_size_bytes(messages(self._form, _CHECKED_MESSAGES)),
            response_messages=self._form.per_response,
            response_bytes=RESPONSE_BYTES,
        )


def _patience(place: _Place) -> float:
    """Say how many seconds a consumer may take for its backlog: twenty times what is usual, and some to begin."""
    return 20 * place.count / place.contender.messages_a_second + _MARGIN_SECONDS


def _cases(pairing: Pairing) -> Iterator[PubSubCase]:
    rate, cpu = _TARGETS.get((pairing.case, pairing.against), (None, None))
    yield pairing.by_rate(rate)
    yield pairing.by_cpu(cpu)


def _text(content: Iterable[Any]) -> bytes:
    """Write down what a message says: operation, table, before, after."""
    return orjson.dumps(list(content), option=orjson.OPT_SORT_KEYS)


def _seen_text(line: bytes) -> bytes:
    """Write down what a handler was given: a peer's whole message, or our content of it."""
    value = orjson.loads(line)
    return _text(value if isinstance(value, list) else content_of(value))


def _compare(seen: Counter[bytes], expected: Counter[bytes], who: str) -> None:
    """Refuse to measure whoever did not see every message at least once, or saw one that was not sent."""
    missing = [text for text, count in expected.items() if seen[text] < count]
    strange = [text for text in seen if text not in expected]
    assert not missing, f"{who}: {len(missing)} messages were not seen, one of them {missing[0]!r}"
    assert not strange, f"{who}: {len(strange)} messages read differently, one of them {strange[0]!r}"
