"""The checker finds what was broken on purpose, and nothing where nothing was."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.checker import Effect, Letter, Sighting, Story, Violation, violations

ORDER = "order per row"


def effects(row: int, *seqs: int, pid: int = 1) -> list[Effect]:
    return [Effect(row, seq, "u", pid, 0.0) for seq in seqs]


def judged(applied: Sequence[Effect], published: dict[int, int] | None = None) -> list[Violation]:
    return violations(Story(published=published or {1: 4}, effects=applied, in_flight=10))


def test_a_run_in_order_breaks_nothing():
    assert judged(effects(1, 0, 1, 2, 3)) == []


def test_rows_may_be_interleaved():
    assert judged([*effects(2, 0), *effects(1, 0, 1), *effects(2, 1)], {1: 2, 2: 2}) == []


@pytest.mark.parametrize("seqs", [(0, 1, 0, 1, 2, 3), (0, 1, 2, 3, 1, 2, 3), (0, 1, 1, 2, 3), (0, 1, 2, 1, 0, 1, 2, 3)])
def test_a_redelivery_that_goes_on_in_order_breaks_nothing(seqs):
    assert judged(effects(1, *seqs)) == []


def test_a_change_that_never_took_place_is_lost():
    assert judged(effects(1, 0, 1, 2)) == [
        Violation("nothing is lost", "row 1: 3 neither applied nor in the dead letters")
    ]


def test_a_row_that_never_came_is_lost_with_all_its_changes():
    assert judged([], {7: 8}) == [
        Violation("nothing is lost", "row 7: 0, 1, 2, 3, 4 and 3 more neither applied nor in the dead letters")
    ]


def test_a_row_that_skips_ahead_is_a_break_even_if_the_change_comes_later():
    assert judged(effects(1, 0, 2, 1, 2, 3)) == [
        Violation(ORDER, "row 1: 2 after 0 by process 1, skipped ahead"),
    ]


def test_a_redelivery_that_skips_what_was_applied_before_is_a_break():
    assert judged(effects(1, 0, 1, 2, 0, 3)) == [
        Violation(ORDER, "row 1: 3 after 0 by process 1, skipped ahead"),
    ]
    assert judged(effects(1, 0, 1, 2, 0, 2, 3)) == [
        Violation(ORDER, "row 1: 2 after 0 by process 1, did not go on in order after a redelivery"),
    ]


def test_a_row_that_ends_in_its_past_is_a_break():
    assert judged(effects(1, 0, 1, 2, 3, 1)) == [Violation(ORDER, "row 1: ends with 1, after 3 was applied")]


def test_a_change_that_nobody_published_is_told():
    assert judged(effects(1, 0, 1, 2, 3, 4)) == [
        Violation("nothing is invented", "row 1: 4 was never published"),
        Violation(ORDER, "row 1: 4 after 3 by process 1, skipped ahead"),
    ]


def test_more_acknowledged_than_applied_is_an_ack_before_its_effect():
    story = Story(
        published={1: 3},
        effects=effects(1, 0, 0, 1, 2),
        in_flight=1,
        sightings=[Sighting(1, 1), Sighting(2, 2), Sighting(3, 4)],
    )

    assert violations(story) == [
        Violation(
            "no ack before its effect",
            "2 messages acknowledged when 1 changes were applied and at most 0 in the dead letters",
        )
    ]


def test_what_was_in_flight_when_a_process_died_may_be_applied_again():
    story = Story(published={1: 4}, effects=[*effects(1, 0, 1, 2), *effects(1, 1, 2, 3, pid=2)], in_flight=2)

    assert violations(story) == []


def test_more_duplicates_than_were_in_flight_are_told():
    story = Story(
        published={1: 4}, effects=[*effects(1, 0, 1, 2), *effects(1, 0, 1, 2, 3, pid=2)], in_flight=1, redelivered=1
    )

    assert violations(story) == [
        Violation(
            "duplicates only of what was in flight",
            "applied again: 3 of process 1; 1 of each may have been in flight, 1 came twice",
        )
    ]


def poisoned(*letters: Letter, applied: Sequence[Effect]) -> list[Violation]:
    story = Story(published={1: 3}, effects=applied, poison={(1, 1): b"as published"}, letters=letters)
    return violations(story)


LETTER = Letter(1, 1, b"as published")
ONCE = "every poisoned change is in the dead letters once, as it was"
ONLY = "only poison goes to the dead letters"


def test_poison_in_the_dead_letters_is_neither_lost_nor_a_break():
    assert poisoned(LETTER, applied=effects(1, 0, 2)) == []


def test_poison_that_is_nowhere_is_lost():
    assert [v.promise for v in poisoned(applied=effects(1, 0, 2))] == ["nothing is lost", ORDER, ONCE]


def test_poison_that_is_there_twice_or_with_other_bytes_is_told():
    assert poisoned(LETTER, LETTER, applied=effects(1, 0, 2)) == [Violation(ONCE, "row 1: poisoned 1 is there 2 times")]
    assert poisoned(Letter(1, 1, b"changed"), applied=effects(1, 0, 2)) == [
        Violation(ONCE, "row 1: poisoned 1 has other bytes than were published")
    ]


def test_a_good_change_in_the_dead_letters_is_told():
    assert poisoned(LETTER, Letter(1, 2, b""), applied=effects(1, 0)) == [
        Violation(ONLY, "row 1: 2 is there and is no poison")
    ]


def test_poison_that_was_applied_as_well_is_told():
    assert Violation(ONLY, "row 1: 1 is there and was applied, too") in poisoned(LETTER, applied=effects(1, 0, 1, 2))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 12))
def test_any_seeded_violation_in_a_long_run_is_found(seed, rows, count):
    rng = random.Random(seed)
    log = _orderly(rng, rows, count)
    assert judged(log, dict.fromkeys(range(rows), count)) == []

    # Without this effect its row has a hole, which the row either skips or never fills.
    place = rng.randrange(len(log))
    lost = log[place]
    once = [effect for effect in log if effect != lost]
    assert {"nothing is lost"} <= {v.promise for v in judged(once, dict.fromkeys(range(rows), count))}

    # Two neighbours of one row change places.
    row = rng.randrange(rows)
    first, second = rng.choice(_neighbours(log, row))
    log[first], log[second] = log[second], log[first]
    assert {ORDER} == {v.promise for v in judged(log, dict.fromkeys(range(rows), count))}


def _orderly(rng: random.Random, rows: int, count: int) -> list[Effect]:
    turns = [row for row in range(rows) for _ in range(count)]
    rng.shuffle(turns)
    seqs = {row: iter(range(count)) for row in range(rows)}
    return [Effect(row, next(seqs[row]), "u", 1, 0.0) for row in turns]


def _neighbours(log: Sequence[Effect], row: int) -> list[tuple[int, int]]:
    places = [place for place, effect in enumerate(log) if effect.row == row]
    return list(pairwise(places))
