"""Leases: what is held, what is extended when, and what is given up."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_reactor.leases import Leases
from cdc_reactor.messages import Delivery, Message


def deliveries(*ack_ids: str, size: int = 10) -> list[Delivery]:
    return [Delivery(Message(b"x" * size), ack_id) for ack_id in ack_ids]


def leases(ack_deadline: float = 60, max_lease: float = 600, *, jitter: float = 0.0) -> Leases:
    return Leases(ack_deadline, max_lease, jitter=lambda: jitter)


def test_what_arrived_is_held_until_it_is_released():
    held = leases()
    one, two = deliveries("a", "b")

    held.take([one, two], 0.0)
    assert (len(held), held.size_bytes, held.still_held(["b", "c"])) == (2, 20, ["b"])

    assert held.release(["a", "never seen"]) == [one]
    assert (len(held), held.size_bytes) == (1, 10)

    assert held.release(["a", "b"]) == [two]
    assert (len(held), held.size_bytes, held.lost()) == (0, 0, [])


def test_nothing_is_due_while_nothing_is_held():
    held = leases()
    assert held.next_due() == inf

    held.take(deliveries("a"), 0.0)
    held.release(["a"])
    assert held.due(30.0) is None
    assert held.next_due() == inf


def test_a_lease_is_extended_at_half_its_deadline_and_again_half_a_deadline_later():
    held = leases()
    held.take(deliveries("a", "b"), 0.0)
    assert held.next_due() == 30.0
    assert held.due(29.9) is None

    asked = held.due(30.0)
    assert asked is not None
    assert asked.ack_ids == ["a", "b"]
    held.extended(asked, 30.0)

    assert held.next_due() == 60.0


def test_jitter_brings_an_extension_forward():
    held = leases(jitter=1.0)
    held.take(deliveries("a"), 0.0)

    assert held.next_due() == 24.0


def test_only_what_is_still_held_is_extended():
    held = leases()
    held.take(deliveries("a", "b", "c"), 0.0)
    held.release(["b"])

    asked = held.due(30.0)

    assert asked is not None
    assert asked.ack_ids == ["a", "c"]


def test_what_falls_due_soon_is_extended_in_the_same_round():
    held = leases()
    held.take(deliveries("a"), 0.0)
    held.take(deliveries("b"), 2.5)
    held.take(deliveries("c"), 10.0)

    asked = held.due(30.0)
    assert asked is not None
    assert asked.ack_ids == ["a", "b"]
    held.extended(asked, 30.0)

    assert held.next_due() == 40.0


def test_while_a_round_is_under_way_its_leases_are_not_asked_for_again():
    held = leases()
    held.take(deliveries("a"), 0.0)
    held.due(30.0)

    assert held.due(35.0) is None
    assert held.next_due() == 60.0


def test_a_round_that_failed_is_tried_again():
    held = leases()
    held.take(deliveries("a"), 0.0)
    asked = held.due(30.0)
    assert asked is not None

    held.not_extended(asked, 31.0)

    assert held.next_due() == 31.0
    again = held.due(31.0)
    assert again is not None
    assert again.ack_ids == ["a"]


def test_a_lease_that_could_not_be_extended_is_lost_when_it_runs_out():
    held = leases()
    (one,) = deliveries("a")
    held.take([one], 0.0)
    asked = held.due(30.0)
    assert asked is not None
    held.not_extended(asked, 90.0)

    assert held.due(60.0) is None

    assert (held.lost(), held.given_up, len(held), held.size_bytes) == ([one], 1, 0, 0)
    assert held.lost() == []


def test_a_lease_is_given_up_when_it_reached_its_maximum():
    held = leases(max_lease=100)
    (one,) = deliveries("a")
    held.take([one], 0.0)
    for now in (30.0, 60.0, 90.0):
        asked = held.due(now)
        assert asked is not None
        held.extended(asked, now)

    assert held.next_due() == 100.0
    assert held.due(100.0) is None

    assert (held.lost(), len(held)) == ([one], 0)


def test_what_the_broker_refuses_is_lost_once():
    held = leases()
    one, two = deliveries("a", "b")
    held.take([one, two], 0.0)

    held.give_up(["b", "never seen"])
    held.give_up(["b"])

    assert (held.lost(), held.given_up, held.still_held(["a", "b"])) == ([two], 1, ["a"])


def test_an_ack_id_that_comes_twice_is_held_once():
    held = leases()
    held.take(deliveries("a", "b", size=10), 0.0)
    later = deliveries("a", size=30)
    held.take(later, 20.0)

    assert (len(held), held.size_bytes) == (2, 40)
    assert held.release(["a"]) == later
    assert (len(held), held.size_bytes) == (1, 10)


def test_a_steady_stream_leaves_nothing_behind():
    held = leases()
    for step in range(10_000):
        now = step / 10
        held.take(deliveries(f"{step}"), now)
        held.release([f"{step}"])
        if now >= held.next_due():
            held.due(now)

    assert len(held._cohorts) <= 2


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_delivery_is_held_released_or_lost_and_no_lease_that_is_held_has_run_out(data):
    """A broker that answers or does not, for a schedule of arrivals, acks and pauses."""
    held = leases(60, 300, jitter=0.5)
    now, number = 0.0, 0
    known: dict[str, Delivery] = {}
    runs_out: dict[str, float] = {}
    released: set[str] = set()
    lost: set[str] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["arrive", "ack", "wait", "wait", "twin"])):
            case "arrive":
                new = deliveries(*[str(number + i) for i in range(data.draw(st.integers(1, 4)))])
                number += len(new)
                held.take(new, now)
                known.update({d.ack_id: d for d in new})
                runs_out.update({d.ack_id: now + 60 for d in new})
            case "twin" if alive := sorted(set(known) - released - lost):
                held.take([known[alive[0]]], now)
                runs_out[alive[0]] = now + 60
            case "ack":
                some = data.draw(st.lists(st.sampled_from(sorted(known) or ["?"]), unique=True))
                released |= {d.ack_id for d in held.release(some)}
            case _:
                now = min(now + data.draw(st.floats(0, 45)), held.next_due())
        asked = held.due(now)
        if asked is not None:
            if data.draw(st.booleans()):
                held.extended(asked, now)
                runs_out.update(dict.fromkeys(asked.ack_ids, now + 60))
            else:
                held.not_extended(asked, now + 1)
        lost |= {d.ack_id for d in held.lost()}
        alive = sorted(set(known) - released - lost)
        assert sorted(held.still_held(known)) == alive
        assert (len(held), held.size_bytes) == (len(alive), 10 * len(alive))
        assert not released & lost
        assert all(runs_out[ack_id] > now for ack_id in alive)
