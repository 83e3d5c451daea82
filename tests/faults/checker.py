"""The one checker of what every fault test promises: from what was published, applied and buried to violations.

It judges values only and neither starts nor reads anything; an empty list is the promise kept. Effects come in the order
of the effect log, which is the order in which they took place. Neighbours: `effects` writes and reads that log,
`traffic` publishes, `stage` runs the processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Effect(NamedTuple):
    """One applied change: the `seq`-th (from 0) of its row, by which process, and when (monotonic seconds)."""

    row: int
    seq: int
    op: str
    pid: int
    time: float


class Letter(NamedTuple):
    """One message of the dead-letter topic."""

    row: int
    seq: int
    data: bytes


class Sighting(NamedTuple):
    """How many messages the broker called acknowledged, and how many effects the log had when it was read after that."""

    acked: int
    effects: int


class Violation(NamedTuple):
    """A promise that was broken, and where."""

    promise: str
    told: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What happened in one run.

    `published` says how many changes each row had, `poison` which of them (with their original bytes) no handler can
    apply. `in_flight` is how many changes one process may hold, so many may be applied again after it died;
    `redelivered` is how many more were delivered twice on purpose.
    """

    published: Mapping[int, int]
    effects: Sequence[Effect]
    poison: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    letters: Sequence[Letter] = ()
    sightings: Sequence[Sighting] = ()
    in_flight: int = 0
    redelivered: int = 0


def violations(story: Story) -> list[Violation]:
    """Judge a run by every promise; the first of each kind are the most telling."""
    return [
        *_lost(story),
        *_invented(story),
        *order_breaks(story),
        *_early_acks(story),
        *_duplicates(story),
        *_letters(story),
    ]


def _lost(story: Story) -> Iterator[Violation]:
    done = {(e.row, e.seq) for e in story.effects} | {(letter.row, letter.seq) for letter in story.letters}
    for row, count in story.published.items():
        missing = [seq for seq in range(count) if (row, seq) not in done]
        if missing:
            yield Violation("nothing is lost", f"row {row}: {_some(missing)} neither applied nor in the dead letters")


def _invented(story: Story) -> Iterator[Violation]:
    for effect in story.effects:
        if effect.seq >= story.published.get(effect.row, 0):
            yield Violation("nothing is invented", f"row {effect.row}: {effect.seq} was never published")


def order_breaks(story: Story) -> list[Violation]:
    """Find where a row skipped ahead, or did not go on in order after a redelivery."""
    by_row: dict[int, list[Effect]] = defaultdict(list)
    for effect in story.effects:
        by_row[effect.row].append(effect)
    buried: dict[int, set[int]] = defaultdict(set)
    for letter in story.letters:
        buried[letter.row].add(letter.seq)
    return [
        found
        for row, effects in by_row.items()
        for found in _breaks(row, effects, _followers(story.published.get(row, 0), buried[row]))
    ]


def _followers(count: int, buried: set[int]) -> dict[int, int]:
    """Map every seq that can be applied to the one that must come after it; -1 stands before the first."""
    alive = [-1, *(seq for seq in range(count) if seq not in buried)]
    return dict(pairwise(alive))


def _breaks(row: int, effects: Sequence[Effect], followers: Mapping[int, int]) -> Iterator[Violation]:
    before = highest = -1
    for effect in effects:
        seq = effect.seq
        if seq > before and seq != followers.get(before):
            what = "skipped ahead" if seq > highest else "did not go on in order after a redelivery"
            yield Violation("order per row", f"row {row}: {seq} after {before} by process {effect.pid}, {what}")
        before, highest = seq, max(highest, seq)
    if before != highest:
        yield Violation("order per row", f"row {row}: ends with {before}, after {highest} was applied")


def _early_acks(story: Story) -> Iterator[Violation]:
    distinct = _distinct_counts(story.effects) if story.sightings else [0]
    for sighting in story.sightings:
        applied = distinct[min(sighting.effects, len(distinct) - 1)]
        if sighting.acked > applied + len(story.letters):
            yield Violation(
                "no ack before its effect",
                f"{sighting.acked} messages acknowledged when {applied} changes were applied "
                f"and at most {len(story.letters)} in the dead letters",
            )


def _distinct_counts(effects: Sequence[Effect]) -> list[int]:
    """Say of every length of the log how many different changes it holds."""
    seen: set[tuple[int, int]] = set()
    counts = [0]
    for effect in effects:
        seen.add((effect.row, effect.seq))
        counts.append(len(seen))
    return counts


def _duplicates(story: Story) -> Iterator[Violation]:
    """Count the changes of each process that were applied again later, by it or by another."""
    last_by: dict[tuple[int, int], int] = {}
    again: Counter[int] = Counter()
    for effect in story.effects:
        change = (effect.row, effect.seq)
        if change in last_by:
            again[last_by[change]] += 1
        last_by[change] = effect.pid
    excess = sum(max(0, count - story.in_flight) for count in again.values())
    if excess > story.redelivered:
        told = ", ".join(f"{count} of process {pid}" for pid, count in again.items())
        yield Violation(
            "duplicates only of what was in flight",
            f"applied again: {told}; {story.in_flight} of each may have been in flight, {story.redelivered} came twice",
        )


def _letters(story: Story) -> Iterator[Violation]:
    promise = "every poisoned change is in the dead letters once, as it was"
    counts = Counter((letter.row, letter.seq) for letter in story.letters)
    for change, data in story.poison.items():
        if counts[change] != 1:
            yield Violation(promise, f"row {change[0]}: poisoned {change[1]} is there {counts[change]} times")
        elif any(letter.data != data for letter in story.letters if (letter.row, letter.seq) == change):
            yield Violation(promise, f"row {change[0]}: poisoned {change[1]} has other bytes than were published")
    for row, seq in counts.keys() - story.poison.keys():
        yield Violation("only poison goes to the dead letters", f"row {row}: {seq} is there and is no poison")
    for row, seq in counts.keys() & {(e.row, e.seq) for e in story.effects}:
        yield Violation("only poison goes to the dead letters", f"row {row}: {seq} is there and was applied, too")


def _some(numbers: Sequence[int]) -> str:
    told = ", ".join(str(n) for n in numbers[:5])
    return told if len(numbers) <= 5 else f"{told} and {len(numbers) - 5} more"
