"""The reactor, one behaviour at a time: values in, values out, and a clock that is a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import pytest

from cdc_reactor.errors import WorldError
from cdc_reactor.events import Event, Publication
from cdc_reactor.handlers import OnPoison
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import EVERY_LANE, Backoff, Failure, Held, Outcome, Reactor, Route, Work

ACK, NACK, DEAD_LETTER = Verdict.ACK, Verdict.NACK, Verdict.DEAD_LETTER
NO = ValueError("no")
FAILED = Failure(NO)
LEASE = "its lease would end before the next attempt"


@dataclass(eq=False)
class FakeConsumer:
    name: str = "announce"
    max_size: int = 100
    max_wait: float = 0.0
    max_attempts: int = 3
    on_poison: OnPoison = "skip"


class Meaning(NamedTuple):
    """What a delivery means, and its route."""

    text: str
    route: Route


class Everywhere:
    """A router that sends everything the same way."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def route_all(self, deliveries: Sequence[Delivery], routed: list[Any]) -> None:
        routed.extend(Meaning(d.message.data.decode(), self._route) for d in deliveries)


class Table:
    """A stream whose messages are named by lane and number: `a1`, `a2`, `b1`; `T…` is a truncate, `?…` needs no handler.

    What stands before a colon goes to the first consumer only: `one:a2`.
    """

    def __init__(self, *consumers: FakeConsumer, has_ids: bool = True, has_keys: bool = False, **options: Any) -> None:
        self.consumers = consumers or (FakeConsumer(),)
        self.has_ids = has_ids
        self.has_keys = has_keys
        self.looked_at: list[str] = []
        self._all = Route("users", self.consumers, self._lane_of)
        self._first = Route("users", self.consumers[:1], self._lane_of)
        self.reactor = Reactor(self._route, **{"backoff": Backoff(first=1.0), **options})

    def _lane_of(self, subject: str) -> str:
        self.looked_at.append(subject)
        return subject[0]

    def _route(self, delivery: Delivery) -> Held | Settlement:
        name = delivery.message.data.decode()
        if name.startswith("?"):
            return Settlement(delivery, ACK, "heartbeat")
        route = self._first if name.startswith("one:") else self._all
        lane = EVERY_LANE if name.startswith("T") else None
        return Held(delivery, name.removeprefix("one:"), route, known_lane=lane)

    def delivery(self, name: str, attempt: int = 1) -> Delivery:
        key = name[0] if self.has_keys else ""
        message = Message(name.encode(), ordering_key=key, message_id=name if self.has_ids else "")
        return Delivery(message, f"{name}#{attempt}", attempt)

    def receive(self, names: str, now: float = 0.0, *, attempt: int = 1) -> None:
        self.reactor.receive_all([self.delivery(name, attempt) for name in names.split()], now)

    def ready(self, now: float = 0.0, *, limit: int | None = None, flush: bool = False) -> list[Work]:
        return self.reactor.ready(now, limit=limit, flush=flush)

    def only(self, now: float = 0.0, *, flush: bool = False) -> Work:
        (work,) = self.ready(now, flush=flush)
        return work

    def complete(self, work: Work, *verdicts: Verdict, now: float = 0.0, **options: Any) -> None:
        self.reactor.complete(work, Outcome(verdicts or (ACK,) * len(work.held), **options), now)

    def fail(self, work: Work, now: float = 0.0, *, failure: Failure = FAILED, verdict: Verdict = NACK) -> None:
        """The first change of the work fails; what stands behind it in its lane is given back, the rest is applied."""
        verdicts = [verdict, *(NACK if lane == work.lanes[0] else ACK for lane in work.lanes[1:])]
        self.complete(work, *verdicts, now=now, failures={0: failure})

    def settlements(self) -> list[Settlement]:
        return self.reactor.settlements()

    def settled(self) -> list[tuple[str, Verdict]]:
        return [(str(s.delivery.ack_id).removesuffix("#1"), s.verdict) for s in self.settlements()]

    def acked(self) -> list[str]:
        settled = self.settled()
        assert all(verdict is ACK for _, verdict in settled)
        return [name for name, _ in settled]


def subjects(works: Sequence[Work]) -> list[list[Any]]:
    return [work.subjects for work in works]


class TestBatches:
    def test_a_full_batch_is_handed_out_at_once(self):
        table = Table(FakeConsumer(max_size=2, max_wait=10))

        table.receive("a1 b1 c1")

        assert subjects(table.ready(0.0)) == [["a1", "b1"]]

    def test_a_batch_that_is_not_full_waits_until_its_oldest_change_is_old_enough(self):
        table = Table(FakeConsumer(max_size=10, max_wait=5))

        table.receive("a1", now=100.0)
        table.receive("b1", now=103.0)

        assert table.ready(104.9) == []
        assert table.reactor.next_wakeup() == 105.0
        assert subjects(table.ready(105.0)) == [["a1", "b1"]]

    def test_the_age_of_the_next_batch_counts_from_its_own_oldest_change(self):
        table = Table(FakeConsumer(max_size=2, max_wait=5))

        table.receive("a1 b1", now=0.0)
        table.receive("c1", now=3.0)
        table.ready(3.0)

        assert table.reactor.next_wakeup() == 8.0

    def test_all_full_batches_are_handed_out_and_the_remainder_waits(self):
        table = Table(FakeConsumer(max_size=2, max_wait=1))

        table.receive("a1 b1 c1 d1 e1")

        assert subjects(table.ready(0.0)) == [["a1", "b1"], ["c1", "d1"]]
        assert subjects(table.ready(1.0)) == [["e1"]]

    def test_flush_hands_out_what_is_not_full_and_not_old(self):
        table = Table(FakeConsumer(max_size=10, max_wait=60))

        table.receive("a1 b1")

        assert table.ready(0.0) == []
        assert subjects(table.ready(0.0, flush=True)) == [["a1", "b1"]]

    def test_a_limit_bounds_the_works_of_one_call(self):
        table = Table(FakeConsumer(max_size=1))

        table.receive("a1 b1 c1")

        assert subjects(table.ready(limit=2)) == [["a1"], ["b1"]]
        assert subjects(table.ready(limit=0)) == []
        assert subjects(table.ready(limit=2)) == [["c1"]]

    def test_a_work_says_what_is_in_it(self):
        table = Table()

        table.receive("a1 b1")
        work = table.only()

        assert (work.consumer, work.subjects, work.lanes, work.attempt) == (
            table.consumers[0],
            ["a1", "b1"],
            ["a", "b"],
            1,
        )
        assert table.reactor.running == 1

    def test_what_is_applied_is_acknowledged_in_order(self):
        table = Table()

        table.receive("a1 b1 a2")
        table.complete(table.only())

        assert table.settlements() == [Settlement(table.delivery(name), ACK) for name in ("a1", "b1", "a2")]
        assert table.settlements() == []
        assert (table.reactor.outstanding, table.reactor.running) == (0, 0)

    def test_events_and_counts_of_an_outcome_are_the_callers(self):
        publication = Publication(Event())

        assert Outcome.acked(2, [publication]) == Outcome((ACK, ACK), events=[publication])

    def test_what_needs_no_handler_is_settled_by_its_route(self):
        table = Table()

        table.receive("?1")

        assert table.settlements() == [Settlement(table.delivery("?1"), ACK, "heartbeat")]
        assert table.reactor.outstanding == 0

    def test_receive_is_receive_all_for_one(self):
        table = Table()

        table.reactor.receive(table.delivery("a1"), 0.0)

        assert subjects(table.ready()) == [["a1"]]

    def test_what_a_router_answers_without_more_is_held_with_its_route(self):
        consumer = FakeConsumer(max_size=3)
        reactor = Reactor(Everywhere(Route("users", (consumer,), lambda means: means.text)))
        deliveries = [Delivery(Message(text.encode()), n) for n, text in enumerate("aab")]

        reactor.receive_all(deliveries, 1.0)

        (work,) = reactor.ready(1.0)
        assert [(held.delivery, held.subject.text, held.lane, held.since) for held in work.held] == [
            (deliveries[0], "a", "a", 1.0),
            (deliveries[1], "a", "a", 1.0),
            (deliveries[2], "b", "b", 1.0),
        ]

    def test_what_was_routed_before_an_error_of_the_world_is_taken_in(self):
        def route(delivery: Delivery) -> Settlement:
            if delivery.ack_id == 2:
                raise WorldError("the registry is down")
            return Settlement(delivery, ACK)

        reactor = Reactor(route)
        deliveries = [Delivery(Message(b""), n) for n in range(4)]

        with pytest.raises(WorldError, match="the registry is down"):
            reactor.receive_all(deliveries, 0.0)

        assert reactor.taken == 2
        assert [settlement.delivery for settlement in reactor.settlements()] == deliveries[:2]

    def test_lanes_are_not_looked_at_while_one_batch_at_a_time_is_out(self):
        table = Table(FakeConsumer(max_size=2))

        table.receive("a1 a2 a3")
        for _ in range(2):
            (work,) = table.ready(limit=1)
            table.complete(work)

        assert table.looked_at == []


class TestLanes:
    def test_a_lane_that_is_out_holds_what_is_behind_it_and_lets_others_pass(self):
        table = Table(FakeConsumer(max_size=2))

        table.receive("a1 b1 a2 c1")
        first, second = table.ready()

        assert subjects([first, second]) == [["a1", "b1"], ["c1"]]
        table.complete(second)
        assert table.ready() == []
        table.complete(first)
        assert subjects(table.ready()) == [["a2"]]

    def test_what_waited_comes_before_what_arrived_later(self):
        table = Table(FakeConsumer(max_size=3))

        table.receive("a1 a2 a3 a4 b1 c1")
        first, _ = table.ready()
        table.receive("a5 d1")
        table.complete(first)

        assert subjects(table.ready()) == [["a4", "a5", "d1"]]

    def test_a_hot_lane_longer_than_a_batch_goes_out_batch_by_batch(self):
        table = Table(FakeConsumer(max_size=2))

        table.receive("a1 a2 b1 a3 a4 a5 a6")
        seen = []
        works = table.ready()
        while works:
            seen += subjects(works)
            for work in works:
                table.complete(work)
            works = table.ready()

        assert seen == [["a1", "a2"], ["b1"], ["a3", "a4"], ["a5", "a6"]]
        assert table.acked() == ["a1", "a2", "b1", "a3", "a4", "a5", "a6"]

    def test_what_a_batch_leaves_of_a_lane_stays_before_what_comes(self):
        table = Table(FakeConsumer(max_size=2))
        table.receive("a1 b1 a2 a3 a4")
        first, *_ = table.ready()

        table.complete(first)
        second = table.only()
        table.receive("a5 c1")
        third = table.only()
        table.complete(second)

        assert subjects([second, third, table.only()]) == [["a2", "a3"], ["c1"], ["a4", "a5"]]

    def test_an_ordering_key_is_the_lane(self):
        table = Table(FakeConsumer(max_size=1), has_keys=True)

        table.receive("a1 a2 b1")

        assert subjects(table.ready()) == [["a1"], ["b1"]]
        assert table.looked_at == []

    def test_streams_do_not_share_batches_or_lanes(self):
        consumer = FakeConsumer(max_size=10)
        routes = [Route(stream, [consumer]) for stream in ("users", "posts")]
        reactor = Reactor(lambda d: Held(d, d.ack_id, routes[d.ack_id]))

        for n in (0, 1, 0, 1):
            reactor.receive(Delivery(Message(b"", ordering_key="a"), n), 0.0)

        assert sorted(subjects(reactor.ready(0.0))) == [[0, 0], [1, 1]]

    def test_queues_take_turns_under_a_limit(self):
        consumer = FakeConsumer(max_size=1)
        routes = [Route(n, [consumer]) for n in range(3)]
        reactor = Reactor(lambda d: Held(d, d.ack_id, routes[d.ack_id]))
        for n in (0, 0, 0, 1, 1, 1, 2, 2, 2):
            reactor.receive(Delivery(Message(b"", ordering_key="a"), n), 0.0)

        seen = []
        for _ in range(9):
            # A caller without a free thread asks, too; that must not pass over anybody's turn.
            assert reactor.ready(0.0, limit=0) == []
            (work,) = reactor.ready(0.0, limit=1)
            seen += work.subjects
            reactor.complete(work, Outcome.acked(1), 0.0)

        assert seen == [0, 1, 2] * 3


class TestFailures:
    def test_a_failed_change_is_tried_again_alone_after_the_backoff(self):
        table = Table()

        table.receive("a1 b1 a2")
        table.fail(table.only(0.0), now=10.0)

        assert table.settled() == [("b1", ACK)]
        assert table.ready(10.9) == []
        assert table.reactor.next_wakeup() == 11.0
        again = table.only(11.0)
        assert (again.subjects, again.attempt) == (["a1"], 2)

    def test_what_stands_behind_a_failed_change_waits_for_it(self):
        table = Table()

        table.receive("a1 a2 b1")
        table.fail(table.only())
        table.receive("a3 c1")

        assert subjects(table.ready(0.5)) == [["c1"]]
        table.complete(table.only(1.0))
        assert subjects(table.ready(1.0)) == [["a2", "a3"]]

    def test_each_failure_doubles_the_wait_up_to_the_limit(self):
        backoff = Backoff(first=0.1, limit=1.0)

        assert [round(backoff.delay(n), 3) for n in (1, 2, 3, 4, 5, 1_000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        assert Backoff(first=0.1, random=lambda: 0.0).delay(2) == 0.1

    def test_a_handler_may_ask_for_its_own_delay(self):
        table = Table()

        table.receive("a1")
        table.fail(table.only(0.0), now=3.0, failure=Failure(NO, delay=7.0))

        assert table.reactor.next_wakeup() == 10.0

    def test_attempts_are_counted_and_forgotten_when_the_change_is_applied(self):
        table = Table()
        attempts = []

        for round_ in range(2):
            table.receive("a1", now=round_)
            for verdict in (NACK, NACK, ACK):
                work = table.only(100.0 * (round_ + 1), flush=True)
                attempts.append(work.attempt)
                table.complete(work, verdict, failures={} if verdict is ACK else {0: Failure(NO, delay=0.0)})

        assert attempts == [1, 2, 3, 1, 2, 3]

    def test_a_change_applied_among_failing_ones_is_forgotten_too(self):
        table = Table()
        table.receive("a1")
        table.fail(table.only(), failure=Failure(NO, delay=0.0))
        table.complete(table.only())

        table.receive("a1 b1", attempt=2)
        work = table.only()

        assert (work.subjects, work.attempt) == (["a1", "b1"], 1)

    def test_after_max_attempts_a_change_is_dead_lettered_and_its_lane_goes_on(self):
        table = Table(FakeConsumer(max_attempts=2))

        table.receive("a1 a2")
        table.fail(table.only(0.0), now=0.0)
        table.fail(table.only(1.0), now=1.0)

        assert table.settlements() == [Settlement(table.delivery("a1"), DEAD_LETTER, "no", NO, "announce", 2)]
        assert subjects(table.ready(1.0)) == [["a2"]]

    def test_what_will_never_succeed_is_dead_lettered_at_once(self):
        table = Table()

        table.receive("a1 a2")
        table.complete(table.only(), DEAD_LETTER, ACK, failures={0: FAILED})

        assert table.settlements() == [
            Settlement(table.delivery("a1"), DEAD_LETTER, "no", NO, "announce", 1),
            Settlement(table.delivery("a2"), ACK),
        ]

    def test_a_change_that_is_given_back_has_not_been_tried(self):
        table = Table(FakeConsumer(max_attempts=1))

        table.receive("a1 a2 b1")
        for _ in range(5):
            table.complete(table.only(), NACK, NACK, NACK)
        work = table.only()

        assert sorted(work.subjects) == ["a1", "a2", "b1"]
        assert work.subjects.index("a1") < work.subjects.index("a2")
        assert work.attempt == 1
        assert table.settled() == []

    def test_two_failing_lanes_are_tried_again_apart(self):
        table = Table()

        table.receive("a1 b1")
        table.complete(table.only(), NACK, NACK, failures={0: FAILED, 1: FAILED})

        assert sorted(subjects(table.ready(1.0))) == [["a1"], ["b1"]]

    def test_messages_without_ids_are_counted_one_by_one(self):
        table = Table(FakeConsumer(max_attempts=2), has_ids=False)

        table.receive("a1 a2")
        table.fail(table.only(0.0), now=0.0)
        table.fail(table.only(1.0), now=1.0)
        assert table.settled() == [("a1", DEAD_LETTER)]
        table.fail(table.only(1.0), now=1.0)
        work = table.only(2.0)

        assert (work.subjects, work.attempt) == (["a2"], 2)

    def test_a_work_is_completed_once_only(self):
        table = Table()
        table.receive("a1")
        work = table.only()
        table.complete(work)

        with pytest.raises(ValueError, match="this work is not out"):
            table.complete(work)

    def test_another_reactors_work_is_refused(self):
        table, other = Table(), Table()
        table.receive("a1")

        with pytest.raises(ValueError, match="or another reactor's"):
            other.complete(table.only())

    def test_a_wrong_number_of_verdicts_is_refused_and_the_work_stays_out(self):
        table = Table()
        table.receive("a1 b1")
        work = table.only()

        with pytest.raises(ValueError, match="1 verdicts for 2 changes"):
            table.complete(work, ACK)

        table.complete(work, ACK, ACK)
        assert table.acked() == ["a1", "b1"]


class TestPoison:
    def test_park_dead_letters_what_is_and_what_comes_behind_it(self):
        table = Table(FakeConsumer(on_poison="park", max_size=2))

        table.receive("a1 a2 a3 b1")
        first, second = table.ready()
        table.complete(first, DEAD_LETTER, NACK, failures={0: FAILED})
        table.complete(second)
        table.receive("a4 b2")
        table.complete(table.only())

        behind = "what came before it in its lane is parked"
        assert table.settlements() == [
            Settlement(table.delivery("a1"), DEAD_LETTER, "no", NO, "announce", 1),
            *(Settlement(table.delivery(name), DEAD_LETTER, behind, None, "announce") for name in ("a2", "a3")),
            Settlement(table.delivery("b1"), ACK),
            Settlement(table.delivery("a4"), DEAD_LETTER, behind, None, "announce"),
            Settlement(table.delivery("b2"), ACK),
        ]

    @pytest.mark.parametrize("on_poison", ["park", "halt"])
    def test_poison_behind_a_change_that_is_tried_again_is_judged_when_it_is_first(self, on_poison):
        table = Table(FakeConsumer(on_poison=on_poison, max_size=3))

        table.receive("a1 a2 a3")
        table.complete(table.only(), NACK, DEAD_LETTER, NACK, failures={0: FAILED, 1: FAILED})

        assert (table.settled(), table.reactor.halted) == ([], {})
        again = table.only(now=10.0)
        assert again.subjects == ["a1"]
        table.complete(again, now=10.0)
        assert table.acked() == ["a1"]
        assert table.only(now=10.0).subjects == ["a2", "a3"]

    def test_a_parked_lane_of_one_handler_is_handled_by_the_other(self):
        table = Table(FakeConsumer("one", on_poison="park"), FakeConsumer("two"))
        table.receive("a1")
        one, two = table.ready()
        table.complete(one, DEAD_LETTER, failures={0: FAILED})
        table.complete(two)

        table.receive("a2")
        work = table.only()
        table.complete(work)

        assert (work.consumer.name, work.subjects) == ("two", ["a2"])
        assert table.settled() == [("a1", DEAD_LETTER), ("a2", DEAD_LETTER)]

    def test_halt_stops_the_handler_and_keeps_the_change(self):
        table = Table(FakeConsumer(on_poison="halt", max_attempts=1))

        table.receive("a1 a2 b1")
        table.fail(table.only())
        table.receive("c1")

        assert table.settled() == [("b1", ACK)]
        assert table.ready(1e9, flush=True) == []
        assert table.reactor.next_wakeup() is None
        assert table.reactor.halted == {"announce": FAILED}
        assert table.reactor.outstanding == 3

    def test_a_rejected_change_halts_too(self):
        table = Table(FakeConsumer(on_poison="halt"))

        table.receive("a1")
        table.fail(table.only(), verdict=DEAD_LETTER)

        assert (table.reactor.halted, table.settled()) == ({"announce": FAILED}, [])

    def test_a_halted_handler_does_not_stop_the_other(self):
        table = Table(FakeConsumer("one", on_poison="halt", max_attempts=1), FakeConsumer("two"))
        table.receive("a1")
        one, two = table.ready()
        table.fail(one)
        table.complete(two)
        table.receive("a2")

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("two", ["a2"])]

    def test_what_was_out_when_a_handler_halted_is_settled(self):
        table = Table(FakeConsumer(on_poison="halt", max_attempts=1, max_size=1))
        table.receive("a1 b1 c1")
        first, second, third = table.ready()

        table.fail(first)
        table.complete(second)
        table.fail(third, failure=Failure(NO, delay=5.0))

        assert table.settled() == [("b1", ACK)]
        assert table.reactor.next_wakeup() is None

    def test_a_drain_gives_back_what_a_halted_handler_kept(self):
        table = Table(FakeConsumer(on_poison="halt", max_attempts=1))
        table.receive("a1 a2")
        table.fail(table.only())

        table.reactor.drain()

        assert table.settled() == [("a2", NACK), ("a1", NACK)]
        assert table.reactor.outstanding == 0


class TestPauses:
    def test_a_pause_stops_the_handler_for_so_long(self):
        table = Table(FakeConsumer(max_size=1))

        table.receive("a1 b1")
        first, second = table.ready(0.0)
        table.complete(first, NACK, now=10.0, pause=5.0, pause_reason="the database does not answer")
        table.complete(second, now=10.0)
        table.receive("c1", now=10.0)

        assert table.ready(14.9, flush=True) == []
        assert table.reactor.next_wakeup() == 15.0
        assert subjects(table.ready(15.0)) == [["a1"], ["c1"]]

    def test_a_pause_counts_no_attempt(self):
        table = Table(FakeConsumer(max_attempts=1))
        table.receive("a1")

        for now in range(5):
            table.complete(table.only(now), NACK, now=now, pause=1.0)

        assert (table.only(9.0).attempt, table.settled()) == (1, [])

    def test_a_retry_within_a_pause_waits_for_its_end(self):
        table = Table(FakeConsumer(max_size=1))
        table.receive("a1 b1")
        first, second = table.ready()
        table.fail(first)
        table.complete(second, NACK, pause=5.0)

        assert table.ready(1.0) == []
        assert table.reactor.next_wakeup() == 5.0
        assert sorted(subjects(table.ready(5.0))) == [["a1"], ["b1"]]

    def test_a_pause_may_come_with_success(self):
        table = Table()
        table.receive("a1")
        table.complete(table.only(), ACK, pause=2.0)
        table.receive("a2")

        assert table.acked() == ["a1"]
        assert table.reactor.next_wakeup() == 2.0

    def test_other_handlers_go_on(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"))
        table.receive("a1")
        one, _ = table.ready()
        table.complete(one, NACK, pause=5.0)
        table.receive("b1")

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("two", ["b1"])]


class TestTwoHandlers:
    def test_a_delivery_settles_when_the_last_has_finished(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"))

        table.receive("a1")
        one, two = table.ready()
        table.complete(one)
        assert (table.settled(), table.reactor.outstanding) == ([], 1)
        table.complete(two)

        assert (table.acked(), table.reactor.outstanding) == (["a1"], 0)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_the_worst_verdict_wins_whoever_says_it(self, order):
        table = Table(FakeConsumer("one"), FakeConsumer("two"))
        table.receive("a1")
        works = table.ready()

        for n in order:
            if n:
                table.fail(works[n], verdict=DEAD_LETTER)
            else:
                table.complete(works[n])

        assert table.settlements() == [Settlement(table.delivery("a1"), DEAD_LETTER, "no", NO, "two", 1)]

    def test_they_batch_by_their_own_measure(self):
        table = Table(FakeConsumer("one", max_size=1), FakeConsumer("two", max_size=3))

        table.receive("a1 b1 c1")

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [
            ("one", ["a1"]),
            ("one", ["b1"]),
            ("one", ["c1"]),
            ("two", ["a1", "b1", "c1"]),
        ]

    def test_one_handlers_failure_holds_its_own_lane_only(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"))
        table.receive("a1")
        one, two = table.ready()
        table.fail(one)
        table.complete(two)
        table.receive("a2")

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("two", ["a2"])]

    def test_what_only_one_wants_shares_its_queue(self):
        table = Table(FakeConsumer("one", max_size=2), FakeConsumer("two", max_size=2))

        table.receive("a1 one:a2 a3")
        works = table.ready(flush=True)

        assert [(w.consumer.name, w.subjects) for w in works] == [("one", ["a1", "a2"]), ("two", ["a1", "a3"])]


class TestTruncates:
    def test_a_truncate_waits_for_all_lanes_and_all_lanes_wait_for_it(self):
        table = Table(FakeConsumer(max_size=10))

        table.receive("a1 b1 T1 a2 c1")
        before = table.only()
        assert table.ready() == []
        table.complete(before)
        truncate = table.only()
        assert table.ready() == []
        table.complete(truncate)

        assert subjects([before, truncate, table.only()]) == [["a1", "b1"], ["T1"], ["a2", "c1"]]

    def test_a_truncate_is_alone_and_truncates_go_one_by_one(self):
        table = Table()

        table.receive("T1 T2 a1")
        seen = []
        while works := table.ready():
            seen += subjects(works)
            table.complete(works[0])

        assert seen == [["T1"], ["T2"], ["a1"]]

    def test_a_truncate_waits_for_a_lane_that_is_to_be_tried_again(self):
        table = Table(FakeConsumer(max_size=1))

        table.receive("a1 T1 b1")
        table.fail(table.only())

        assert table.ready(0.5) == []
        table.complete(table.only(1.0))
        assert subjects(table.ready(1.0)) == [["T1"]]

    def test_a_truncate_that_fails_holds_everything_until_it_succeeds(self):
        table = Table()

        table.receive("T1 a1")
        table.fail(table.only())
        table.receive("b1")

        assert table.ready(0.5, flush=True) == []
        assert table.reactor.next_wakeup() == 1.0
        again = table.only(1.0)
        assert (again.subjects, again.attempt) == (["T1"], 2)
        table.complete(again)
        assert subjects(table.ready(1.0)) == [["a1", "b1"]]

    def test_a_truncate_that_is_given_back_comes_first_again(self):
        table = Table()

        table.receive("T1 a1")
        table.complete(table.only(), NACK, pause=1.0)

        assert subjects(table.ready(1.0)) == [["T1"]]

    def test_a_poisoned_truncate_lets_everything_go_on(self):
        table = Table(FakeConsumer(max_attempts=1))

        table.receive("T1 a1")
        table.fail(table.only())

        assert table.settled() == [("T1", DEAD_LETTER)]
        assert subjects(table.ready()) == [["a1"]]

    def test_a_parked_truncate_parks_later_truncates_and_no_rows(self):
        table = Table(FakeConsumer(max_attempts=1, on_poison="park"))

        table.receive("T1 a1 T2 b1")
        table.fail(table.only())

        assert table.settled() == [("T1", DEAD_LETTER), ("T2", DEAD_LETTER)]
        table.complete(table.only())
        assert table.acked() == ["a1", "b1"]
        # A barrier left behind would slow every batch down for good, and nobody would see why.
        assert [queue.barriers for queue in table.reactor._queues.values()] == [0]

    def test_a_truncate_waits_in_each_handlers_queue_by_itself(self):
        table = Table(FakeConsumer("one", max_size=1), FakeConsumer("two", max_size=1))
        table.receive("a1 T1 b1")
        one, two = table.ready()
        table.complete(two)

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("two", ["T1"])]
        table.complete(one)
        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("one", ["T1"])]

    def test_a_truncate_is_not_sent_back_because_no_broker_would_hold_the_rest(self):
        table = Table(hold_limit=0.0)

        table.receive("T1 a1")
        table.fail(table.only())

        assert (table.settled(), table.ready(0.5)) == ([], [])
        assert subjects(table.ready(1.0)) == [["T1"]]

    def test_what_a_truncate_waits_for_is_not_sent_back_either(self):
        table = Table(hold_limit=0.0)

        table.receive("a1 T1")
        table.fail(table.only())

        assert table.settled() == []
        table.complete(table.only(1.0))
        assert subjects(table.ready(1.0)) == [["T1"]]

    def test_a_drain_gives_truncates_back(self):
        table = Table()
        table.receive("a1 T1 b1")
        work = table.only()

        table.reactor.drain()
        table.complete(work)

        assert table.settled() == [("b1", NACK), ("T1", NACK), ("a1", ACK)]


class TestGoingBack:
    def test_a_change_whose_lease_would_end_goes_back_with_its_lane_the_last_first(self):
        table = Table(hold_limit=5.0)

        table.receive("a1 a2 b1 a3")
        table.fail(table.only(4.0), now=4.5)

        assert table.settlements() == [
            Settlement(table.delivery("b1"), ACK),
            *(Settlement(table.delivery(name), NACK, LEASE, None, "announce") for name in ("a3", "a2", "a1")),
        ]
        assert (table.reactor.outstanding, table.reactor.next_wakeup()) == (0, None)

    def test_a_change_that_may_be_held_longer_is_tried_again_here(self):
        table = Table(hold_limit=5.0)

        table.receive("a1")
        table.fail(table.only(), now=4.0)

        assert (table.settled(), table.reactor.next_wakeup()) == ([], 5.0)

    def test_nothing_of_the_lane_is_handed_out_before_the_first_comes_back(self):
        table = gone_back("a1 a2", now=0.0)

        table.receive("a3 b1 a2", now=1.0, attempt=2)

        assert table.settlements() == [
            Settlement(table.delivery("a3", 2), NACK, "behind message a1, which went back"),
            Settlement(table.delivery("a2", 2), NACK, "behind message a1, which went back"),
        ]
        assert subjects(table.ready(1.0)) == [["b1"]]

    def test_what_comes_back_in_order_is_handed_out_and_counts_on(self):
        table = gone_back("a1 a2", now=0.0)
        table.receive("a3", now=1.0)
        table.settled()

        table.receive("a1 a2 a3 a4", now=2.0, attempt=2)
        work = table.only(2.0)

        assert (work.subjects, work.attempt) == (["a1", "a2", "a3", "a4"], 2)
        assert table.settled() == []

    def test_each_waits_for_the_one_before_it(self):
        table = gone_back("a1 a2 a3", now=0.0)

        table.receive("a1 a3", now=1.0, attempt=2)
        assert table.settled() == [("a3#2", NACK)]
        table.receive("a2 a3", now=1.0, attempt=3)

        assert subjects(table.ready(1.0)) == [["a1", "a2", "a3"]]

    def test_what_comes_back_and_goes_again_stands_before_what_is_still_away(self):
        table = gone_back("a1 a2", now=0.0)
        table.receive("a1", now=1.0, attempt=2)
        table.fail(table.only(1.0), now=1.0)
        assert table.settled() == [("a1#2", NACK)]

        table.receive("a2", now=2.0, attempt=2)
        assert table.settled() == [("a2#2", NACK)]
        table.receive("a1 a2", now=3.0, attempt=3)

        assert subjects(table.ready(3.0)) == [["a1", "a2"]]

    def test_what_came_back_may_come_once_more_before_the_others(self):
        table = gone_back("a1 a2", now=0.0)

        table.receive("a1", now=1.0, attempt=2)
        table.receive("a1 a2", now=1.0, attempt=3)

        assert subjects(table.ready(1.0)) == [["a1", "a1", "a2"]]

    def test_what_does_not_come_back_in_time_is_awaited_no_more(self):
        table = gone_back("a1", now=0.0, redelivery_timeout=60.0)

        table.receive("a2", now=59.0)
        assert table.settled() == [("a2", NACK)]
        table.receive("a2", now=60.0, attempt=2)

        assert subjects(table.ready(60.0)) == [["a2"]]

    def test_after_the_timeout_the_rest_still_comes_in_order(self):
        table = gone_back("a1", now=0.0, redelivery_timeout=60.0)
        table.receive("a2 a3", now=59.0)
        table.settled()

        table.receive("a3 a2 a3", now=60.0, attempt=2)

        assert table.settled() == [("a3#2", NACK)]
        assert subjects(table.ready(60.0)) == [["a2", "a3"]]

    def test_lanes_that_are_given_up_cost_nothing_any_more(self):
        table = gone_back("a1", now=0.0, redelivery_timeout=60.0)
        table.ready(60.0)
        table.looked_at.clear()

        table.receive("a2 b1", now=61.0)
        table.only(61.0)

        assert table.looked_at == []

    def test_messages_without_ids_go_back_and_are_not_awaited(self):
        table = gone_back("a1", now=0.0, has_ids=False)

        table.receive("a2", now=1.0)

        work = table.only(1.0)
        assert (work.subjects, work.attempt) == (["a2"], 1)

    def test_a_lane_goes_back_from_every_handler(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two", max_wait=99), hold_limit=0.0)

        table.receive("a1 a2 b1")
        table.fail(table.only())

        assert table.settled() == [("a2", NACK), ("a1", NACK)]
        assert [(w.consumer.name, w.subjects) for w in table.ready(flush=True)] == [("two", ["b1"])]

    def test_what_another_handler_has_out_settles_when_it_comes_back_and_then_only_is_the_lane_open(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two", max_size=1), hold_limit=0.0)
        table.receive("a1 a2")
        one, two = table.ready()
        table.fail(one)
        assert table.settled() == [("a2", NACK)]

        table.receive("a1", attempt=2)
        assert table.settled() == [("a1#2", NACK)]
        table.complete(two)
        assert table.settled() == [("a1", NACK)]
        table.receive("a1 a2", attempt=3)

        assert [(w.consumer.name, w.subjects) for w in table.ready()] == [("one", ["a1", "a2"]), ("two", ["a1"])]

    def test_what_another_handler_fails_meanwhile_goes_back_at_once(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"), hold_limit=50.0)
        table.receive("a1")
        one, two = table.ready()

        table.fail(one, failure=Failure(NO, delay=60.0))
        table.fail(two)

        assert table.settlements() == [Settlement(table.delivery("a1"), NACK, LEASE, None, "one")]
        assert table.reactor.next_wakeup() is None

    def test_another_handlers_retry_of_the_lane_is_given_up_with_it(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"), hold_limit=50.0)
        table.receive("a1 b1")
        one, two = table.ready()
        table.complete(two, NACK, NACK, failures={0: FAILED, 1: Failure(NO, delay=2.0)})

        table.complete(one, NACK, ACK, failures={0: Failure(NO, delay=60.0)})

        assert table.settled() == [("a1", NACK)]
        assert table.reactor.next_wakeup() == 2.0
        table.receive("a1", now=0.5, attempt=2)
        (work, *_) = (w for w in table.ready(0.5) if w.consumer.name == "two")
        # The retry that was given up must not free the lane while it is out again.
        assert [w.subjects for w in table.ready(1.0)] == []
        assert (work.subjects, work.attempt) == (["a1"], 2)

    def test_what_another_handler_dead_letters_is_not_awaited(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two"), hold_limit=0.0)
        table.receive("a1")
        one, two = table.ready()
        table.fail(one)
        table.fail(two, verdict=DEAD_LETTER)
        assert table.settled() == [("a1", DEAD_LETTER)]

        table.receive("a2")

        assert subjects(table.ready()) == [["a2"], ["a2"]]

    def test_a_long_lane_may_go_back_again_and_again_at_a_bearable_price(self):
        names = [f"a{n}" for n in range(20_000)]
        table = gone_back(" ".join(names), now=0.0)

        table.receive(" ".join(reversed(names)), now=1.0, attempt=2)
        assert len(table.settled()) == 19_999
        table.receive(" ".join(names[1:]), now=2.0, attempt=3)

        work = table.ready(2.0, limit=1)[0]
        assert work.subjects == names[:100]


def gone_back(names: str, *, now: float, **options: Any) -> Table:
    """Make a table whose first message failed and went back, with all that stood behind it."""
    table = Table(hold_limit=0.0, **options)
    table.receive(names, now=now)
    table.fail(table.ready(now)[0], now=now)
    assert table.settled() == [(name, NACK) for name in reversed(names.split())]
    return table


class TestDrain:
    def test_what_is_not_in_flight_goes_back_the_last_first(self):
        table = Table(FakeConsumer(max_size=1, max_wait=60))
        table.receive("a1 a2 b1 c1")
        table.ready(limit=1)

        table.reactor.drain()

        assert table.settlements() == [
            Settlement(table.delivery(name), NACK, "draining", None, "announce") for name in ("c1", "b1", "a2")
        ]
        assert table.reactor.outstanding == 1

    def test_what_is_in_flight_is_settled_by_its_outcome(self):
        table = Table(FakeConsumer(max_size=2))
        table.receive("a1 b1 a2 c1")
        first, second = table.ready()

        table.reactor.drain()
        table.complete(first, ACK, NACK, failures={1: FAILED})
        table.complete(second)

        assert table.settled() == [("a2", NACK), ("a1", ACK), ("b1", NACK), ("c1", ACK)]
        assert (table.reactor.outstanding, table.reactor.running, table.reactor.next_wakeup()) == (0, 0, None)

    def test_what_waits_for_a_retry_goes_back(self):
        table = Table()
        table.receive("a1 a2")
        table.fail(table.only())

        table.reactor.drain()

        assert table.settled() == [("a2", NACK), ("a1", NACK)]
        assert (table.ready(1e9, flush=True), table.reactor.next_wakeup()) == ([], None)

    def test_what_arrives_goes_back_at_once(self):
        table = Table()
        table.receive("a1")
        table.complete(table.only())
        table.settled()
        table.reactor.drain()

        table.receive("a2")

        assert table.settlements() == [Settlement(table.delivery("a2"), NACK, "draining")]
        assert table.ready(flush=True) == []

    def test_what_a_pause_holds_goes_back(self):
        table = Table()
        table.receive("a1")
        table.complete(table.only(), NACK, pause=60.0)

        table.reactor.drain()

        assert table.settled() == [("a1", NACK)]

    def test_a_delivery_that_one_handler_has_out_waits_for_it(self):
        table = Table(FakeConsumer("one"), FakeConsumer("two", max_wait=60))
        table.receive("a1")
        work = table.only()

        table.reactor.drain()
        assert table.settled() == []
        table.complete(work)

        assert table.settlements() == [Settlement(table.delivery("a1"), NACK, "draining", None, "two")]

    def test_poison_is_dead_lettered_even_then(self):
        table = Table(FakeConsumer(max_attempts=1))
        table.receive("a1")
        work = table.only()

        table.reactor.drain()
        table.fail(work)

        assert table.settled() == [("a1", DEAD_LETTER)]

    def test_draining_twice_changes_nothing(self):
        table = Table(FakeConsumer(max_size=1))
        table.receive("a1 a2")
        work = table.only()

        table.reactor.drain()
        table.reactor.drain()
        table.complete(work)

        assert table.settled() == [("a2", NACK), ("a1", ACK)]

    def test_what_is_awaited_does_not_end_the_drain(self):
        table = gone_back("a1", now=0.0, redelivery_timeout=1.0)

        table.reactor.drain()
        table.ready(2.0)
        table.receive("b1", now=2.0)

        assert table.settled() == [("b1", NACK)]


class TestWakeups:
    def test_nothing_to_do_is_no_wakeup(self):
        assert Table().reactor.next_wakeup() is None

    def test_a_full_batch_wants_to_go_at_once(self):
        table = Table(FakeConsumer(max_size=1, max_wait=60))
        table.receive("a1", now=5.0)

        assert table.reactor.next_wakeup() == -inf

    def test_a_lane_that_is_free_again_wants_to_go_at_once(self):
        table = Table(FakeConsumer(max_size=1, max_wait=60))
        table.receive("a1 a2")
        first = table.only()
        assert table.ready() == []
        assert table.reactor.next_wakeup() is None

        table.complete(first)

        assert table.reactor.next_wakeup() == -inf

    def test_the_earliest_of_all_queues_counts(self):
        table = Table(FakeConsumer("one", max_wait=9), FakeConsumer("two", max_wait=4))
        table.receive("a1", now=1.0)

        assert table.reactor.next_wakeup() == 5.0

    def test_everything_waiting_behind_a_truncate_asks_for_no_wakeup(self):
        table = Table(FakeConsumer(max_size=1))
        table.receive("a1 T1 b1 c1")
        work = table.only()

        assert (table.ready(), table.reactor.next_wakeup()) == ([], None)
        table.receive("d1")
        assert (table.ready(), table.reactor.next_wakeup()) == ([], None)
        table.complete(work)
        assert table.reactor.next_wakeup() == -inf

    def test_after_ready_no_wakeup_is_due(self):
        table = Table(FakeConsumer(max_size=1))
        table.receive("a1 a2 b1 T1 c1")

        for work in table.ready(0.0):
            table.fail(work, failure=Failure(NO, delay=3.0))
            assert table.ready(0.0) == []
            assert table.reactor.next_wakeup() in (None, 3.0)

        assert sorted(subjects(table.ready(3.0))) == [["a1"], ["b1"]]
