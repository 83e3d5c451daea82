"""The four promises of the reactor, over thousands of random schedules; a failure prints the seed to run again.

A schedule is a broker, a reactor, handlers that fail at random, and chance, which decides what happens next. The broker is
a model of an ordered subscription: messages of one key arrive in order, and after a NACK that message and all behind it
arrive again in order. Every schedule ends with calm: what can be settled must then be settled.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cdc_reactor.handlers import OnPoison
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import EVERY_LANE, Backoff, Failure, Held, Outcome, Reactor, Route, Work

ACK, NACK, DEAD_LETTER = Verdict.ACK, Verdict.NACK, Verdict.DEAD_LETTER

REDELIVERY_TIMEOUT = 1_000_000.0

#: Which message of which key, and which of its deliveries.
AckId: TypeAlias = tuple[str, int, int]


@dataclass(eq=False)
class FakeConsumer:
    name: str
    max_size: int = 3
    max_wait: float = 0.5
    max_attempts: int = 3
    on_poison: OnPoison = "skip"


@dataclass
class Key:
    """One ordering key of the broker: all that was published, how far it was sent, and what is under way."""

    log: list[Message] = field(default_factory=list)
    cursor: int = 0
    wire: deque[Delivery] = field(default_factory=deque)
    settled: set[int] = field(default_factory=set)
    newest: dict[int, int] = field(default_factory=dict)


class Broker:
    """An ordered subscription.

    `recalls`: what is under way when a message in front of it is nacked arrives no more. `resends_settled`: behind a nacked
    message even what was acknowledged is sent again, as Pub/Sub's documentation says. `heeds_stale`: a nack counts although
    the message was sent again since.
    """

    def __init__(self, *, recalls: bool, resends_settled: bool = False, heeds_stale: bool = False) -> None:
        self.recalls = recalls
        self.resends_settled = resends_settled
        self.heeds_stale = heeds_stale
        self.keys: dict[str, Key] = {}
        self.serial = 0

    @property
    def is_orderly(self) -> bool:
        return not self.resends_settled and not self.heeds_stale

    def publish(self, name: str, message: Message) -> None:
        self.keys.setdefault(name, Key()).log.append(message)

    def send(self, name: str) -> None:
        key = self.keys[name]
        while not self.resends_settled and key.cursor in key.settled:
            key.cursor += 1
        if key.cursor < len(key.log):
            self.serial += 1
            index, key.cursor = key.cursor, key.cursor + 1
            key.settled.discard(index)
            key.newest[index] = self.serial
            key.wire.append(Delivery(key.log[index], (name, index, self.serial)))

    def settle(self, settlement: Settlement) -> None:
        name, index, serial = settlement.delivery.ack_id
        key = self.keys[name]
        if settlement.verdict is not NACK:
            key.settled.add(index)
        elif index not in key.settled and (self.heeds_stale or key.newest[index] == serial):
            self.rewind(name, index)

    def rewind(self, name: str, index: int) -> None:
        key = self.keys[name]
        key.cursor = min(key.cursor, index)
        if self.recalls:
            key.wire = deque(d for d in key.wire if d.ack_id[1] < index)

    def reconnect(self) -> None:
        """Begin each key with the first message that was not settled; nothing is under way any more."""
        for name, key in self.keys.items():
            key.wire.clear()
            unsettled = [i for i in range(len(key.log)) if i not in key.settled]
            self.rewind(name, min(unsettled, default=key.cursor))

    @property
    def is_done(self) -> bool:
        return all(len(k.settled) == k.cursor == len(k.log) and not k.wire for k in self.keys.values())


@dataclass
class Progress:
    """How far one handler is with one key."""

    #: Applied, or dead-lettered, by index.
    done: set[int] = field(default_factory=set)
    applied: list[int] = field(default_factory=list)
    #: What failed last and must come before everything behind it.
    held_at: int | None = None
    failures: dict[int, int] = field(default_factory=dict)
    is_parked: bool = False


class Schedule:
    """One run of a reactor under chance, which checks the promises at every step."""

    def __init__(
        self,
        seed: int,
        *,
        hold_limit: float | None = None,
        has_truncates: bool | None = None,
        may_halt: bool = True,
        is_failing: bool = True,
    ) -> None:
        self.chance = chance = random.Random(seed)
        self.now = 0.0
        self.is_failing = is_failing
        self.hold_limit = hold_limit if hold_limit is not None else chance.choice([inf, inf, 0.0, 0.3, 2.0])
        self.has_truncates = chance.random() < 0.3 if has_truncates is None else has_truncates
        self.has_ordering_keys = chance.random() < 0.8
        poisons: tuple[OnPoison, ...] = ("skip", "park", "halt") if may_halt else ("skip", "park")
        self.consumers = {
            table: [
                FakeConsumer(
                    f"{table}{n}",
                    max_size=chance.choice([1, 2, 3, 5, 100]),
                    max_wait=chance.choice([0.0, 0.1, 0.5]),
                    max_attempts=chance.choice([3, 4, 6]),
                    on_poison=chance.choices(poisons, [6, 2, 1][: len(poisons)])[0],
                )
                for n in range(chance.choice([1, 1, 2]))
            ]
            for table in ("users", "posts")[: chance.choice([1, 2])]
        }
        self.broker, self.lapses = self._choose_broker()
        # A broker may send again what was applied already; only a well-behaved one does so in order.
        self.is_strict = not self.lapses and (self.hold_limit == inf or self.broker.is_orderly)
        self.names = [f"{t}/{k}" for t in self.consumers for k in "abcd"[: chance.choice([1, 2, 4])]]
        self.progress: dict[tuple[FakeConsumer, str], Progress] = {}
        self.troubles: dict[tuple[FakeConsumer, str], float] = {}
        self.arrivals: dict[AckId, int] = {}
        self.settled: dict[AckId, Verdict] = {}
        self.dead: set[tuple[str, int]] = set()
        self.unheeded: deque[Settlement] = deque()
        self.open_truncates: dict[FakeConsumer, set[int]] = {}
        self.truncates = 0
        #: What was here when a truncate came, and stands before it.
        self.before_truncate: dict[int, set[tuple[str, int]]] = {}
        self._start()

    def _choose_broker(self) -> tuple[Broker, bool]:
        chance = self.chance
        has_two = any(len(consumers) > 1 for consumers in self.consumers.values())
        if (has_two and self.hold_limit < inf) or chance.random() < 0.4:
            return Broker(recalls=chance.random() < 0.5), False
        lapses = chance.random() < 0.5
        return Broker(
            recalls=chance.random() < 0.5,
            resends_settled=chance.random() < 0.5,
            heeds_stale=not lapses and chance.random() < 0.5,
        ), lapses

    def _start(self) -> None:
        # A Route remembers the queues of its reactor, so that each reactor needs its own.
        self.routes = {table: Route(table, consumers, self._lane_of) for table, consumers in self.consumers.items()}
        self.subsets = {
            table: Route(table, consumers[:1], self._lane_of) for table, consumers in self.consumers.items()
        }
        self.reactor = Reactor(
            self._route,
            backoff=Backoff(random=self.chance.random),
            hold_limit=self.hold_limit,
            redelivery_timeout=REDELIVERY_TIMEOUT,
        )
        self.works: list[Work] = []
        for progress in self.progress.values():
            progress.failures.clear()
            progress.is_parked = False
        self.open_truncates = {c: set() for consumers in self.consumers.values() for c in consumers}

    @staticmethod
    def _lane_of(subject: Any) -> str:
        return str(subject[0])

    def _route(self, delivery: Delivery) -> Held | Settlement:
        name, index, _ = delivery.ack_id
        table = name.partition("/")[0]
        if "truncate" in name:
            return Held(delivery, (name, index), self.routes[table], known_lane=EVERY_LANE)
        routes = self.subsets if self._is_partly_wanted(index) else self.routes
        return Held(delivery, (name, index), routes[table])

    def _is_partly_wanted(self, index: int) -> bool:
        return self.hold_limit == inf and index % 4 == 3

    def _wants(self, consumer: FakeConsumer, index: int) -> bool:
        return consumer.name[-1] == "0" or not self._is_partly_wanted(index)

    def _progress_of(self, consumer: FakeConsumer, name: str) -> Progress:
        return self.progress.setdefault((consumer, name), Progress())

    # What chance may choose.

    def publish(self) -> None:
        name = self.chance.choice(self.names)
        if self.has_truncates and self.chance.random() < 0.15:
            self.truncates += 1
            name = f"{name.partition('/')[0]}/truncate{self.truncates}"
            self.broker.publish(name, Message(b"", message_id=name))
            return
        for _ in range(self.chance.choice([1, 1, 4])):
            n = len(self.broker.keys[name].log) if name in self.broker.keys else 0
            key = name if self.has_ordering_keys else ""
            self.broker.publish(name, Message(b"", ordering_key=key, message_id=f"{name}{n}"))

    def send(self) -> None:
        for name in list(self.broker.keys):
            for _ in range(self.chance.choice([0, 1, 3])):
                self.broker.send(name)

    def arrive(self) -> None:
        keys = [key for key in self.broker.keys.values() if key.wire]
        self.chance.shuffle(keys)
        arriving = []
        for key in keys:
            for _ in range(min(len(key.wire), self.chance.choice([1, 2, 5]))):
                arriving.append(key.wire.popleft())
                self.arrivals[arriving[-1].ack_id] = len(self.arrivals)
        self.reactor.receive_all(arriving, self.now)
        self._collect()
        for name, index, serial in (d.ack_id for d in arriving if d.ack_id not in self.settled):
            if "truncate" in name:
                place = self.arrivals[name, index, serial]
                here = (a for a, n in self.arrivals.items() if a not in self.settled and n < place)
                self.before_truncate[place] = {a[:2] for a in here}
                for consumer in self.consumers[name.partition("/")[0]]:
                    self.open_truncates[consumer].add(place)

    def pass_time(self) -> None:
        self.now += self.chance.choice([0.0, 0.01, 0.1, 0.5, 3.0])

    def hand_out(self) -> None:
        limit = self.chance.choice([None, None, 0, 1, 2])
        works = self.reactor.ready(self.now, limit=limit, flush=self.chance.random() < 0.2)
        assert limit is None or len(works) <= limit
        for work in works:
            self._check_handed(work)
            self.works.append(work)
        if limit is None:
            wakeup = self.reactor.next_wakeup()
            assert wakeup is None or wakeup > self.now, "ready was asked, and must not be asked again at once"

    def complete(self) -> None:
        if self.works:
            work = self.works.pop(self.chance.randrange(len(self.works)))
            outcome = self._outcome(work)
            self.reactor.complete(work, outcome, self.now)
            self._collect()

    def heed(self) -> None:
        for _ in range(self.chance.randint(0, len(self.unheeded))):
            self.broker.settle(self.unheeded.popleft())

    def lapse(self) -> None:
        if self.lapses and self.chance.random() < 0.2:
            name = self.chance.choice(list(self.broker.keys))
            key = self.broker.keys[name]
            unsettled = [i for i in range(key.cursor) if i not in key.settled]
            if unsettled:
                self.broker.rewind(name, self.chance.choice(unsettled))

    def restart(self) -> None:
        self.reactor.drain()
        self._collect()
        assert self.reactor.ready(self.now, flush=True) == []
        self.arrive()
        while self.works:
            self.complete()
        assert self.reactor.ready(self.now, flush=True) == []
        self._check_all_settled()
        for settlement in self.unheeded:
            self.broker.settle(settlement)
        self.unheeded.clear()
        self.broker.reconnect()
        self._start()

    # What must hold.

    def _check_handed(self, work: Work) -> None:
        consumer = work.consumer
        others = [w for w in self.works if w.consumer is consumer]
        lanes = {lane for w in others for lane in w.lanes}
        assert lanes.isdisjoint(work.lanes), "a lane is never in two works at once"
        assert EVERY_LANE not in lanes, "a truncate is out alone"
        assert EVERY_LANE not in work.lanes or (len(work.held) == 1 and not others), "a truncate is out alone"
        assert 1 <= len(work.held) <= consumer.max_size
        barrier = min(self.open_truncates[consumer], default=inf)
        before: dict[str, set[int]] = {}
        for held in work.held:
            name, index = held.subject
            assert self.arrivals[held.delivery.ack_id] <= barrier, "nothing that came behind a truncate overtakes it"
            if "truncate" in name:
                self._check_before_truncate(consumer, name, self.arrivals[held.delivery.ack_id])
            self._check_next(consumer, name, index, before.setdefault(name, set()))
            before[name].add(index)

    def _check_before_truncate(self, consumer: FakeConsumer, truncate: str, place: int) -> None:
        table = truncate.partition("/")[0]
        if len(self.consumers[table]) == 1:
            for name, index in self.before_truncate[place]:
                if name.startswith(table) and (name, index) not in self.dead:
                    done = self._progress_of(consumer, name).done
                    assert index in done, "a truncate waits for all that came before it"

    def _check_next(self, consumer: FakeConsumer, name: str, index: int, before: set[int]) -> None:
        progress = self._progress_of(consumer, name)
        assert not progress.is_parked, "nothing of a parked lane is handed out"
        held_at = progress.held_at
        if held_at is not None and self.is_strict and (name, held_at) not in self.dead and held_at not in before:
            assert index <= held_at, "nothing behind a failed change is handed out before it"
        missing = {i for i in range(index) if self._wants(consumer, i)} - progress.done - before
        assert all((name, i) in self.dead for i in missing), "changes of a lane are handed out in publish order"
        progress.held_at = None if held_at == index else held_at

    def _check_all_settled(self) -> None:
        assert set(self.arrivals) == set(self.settled), "every delivery is settled"
        assert self.reactor.outstanding == 0
        assert self.reactor.running == 0

    def _collect(self) -> None:
        for settlement in self.reactor.settlements():
            ack_id = settlement.delivery.ack_id
            assert ack_id in self.arrivals
            assert ack_id not in self.settled, "every delivery is settled exactly once"
            self.settled[ack_id] = settlement.verdict
            if settlement.verdict is DEAD_LETTER:
                self.dead.add(ack_id[:2])
            self.unheeded.append(settlement)
        assert self.reactor.outstanding == len(self.arrivals) - len(self.settled)

    # What handlers do.

    def _outcome(self, work: Work) -> Outcome:
        verdicts: list[Verdict] = []
        failures: dict[int, Failure] = {}
        blocked: set[str] = set()
        is_world_down = self.is_failing and self.chance.random() < 0.05
        down_from = self.chance.randrange(len(work.held)) if is_world_down else len(work.held)
        for n, held in enumerate(work.held):
            name, index = held.subject
            progress = self._progress_of(work.consumer, name)
            if name in blocked or n >= down_from:
                verdict = NACK
                if name not in blocked and not progress.is_parked:
                    progress.held_at = index
                blocked.add(name)
            else:
                verdict = self._try(work.consumer, name, index)
                if verdict is ACK:
                    self._apply(work.consumer, held, progress, index)
                else:
                    failures[n] = Failure(ValueError("no"), self._delay())
                    self._fail(work.consumer, progress, index, verdict)
                    if verdict is NACK or work.consumer.on_poison != "skip":
                        blocked.add(name)
            verdicts.append(verdict)
        return Outcome(verdicts, failures, pause=0.7 if is_world_down else None)

    def _try(self, consumer: FakeConsumer, name: str, index: int) -> Verdict:
        if not self.is_failing:
            return ACK
        key = (consumer, f"{name}{index}")
        if key not in self.troubles:
            troubles = [0, 0, 0, 0, 0, 1, 2] if "truncate" in name else [0] * 12 + [1, 1, 2, 2, inf, -1]
            self.troubles[key] = self.chance.choice(troubles)
        left = self.troubles[key]
        if left < 0:
            return DEAD_LETTER
        self.troubles[key] = max(0, left - 1)
        return NACK if left else ACK

    def _delay(self) -> float | None:
        return self.chance.choice([None, None, 0.0, 5.0])

    def _apply(self, consumer: FakeConsumer, held: Held, progress: Progress, index: int) -> None:
        self.open_truncates[consumer].discard(self.arrivals[held.delivery.ack_id])
        progress.applied.append(index)
        progress.done.add(index)
        progress.failures.pop(index, None)

    def _fail(self, consumer: FakeConsumer, progress: Progress, index: int, verdict: Verdict) -> None:
        attempts = progress.failures[index] = progress.failures.get(index, 0) + 1
        is_poison = verdict is DEAD_LETTER or attempts >= consumer.max_attempts
        if not is_poison or consumer.on_poison == "halt":
            progress.held_at = index
            return
        progress.failures.pop(index)
        progress.done.add(index)
        progress.is_parked = progress.is_parked or consumer.on_poison == "park"

    # How it goes.

    def run(self, steps: int) -> None:
        self.publish()
        often: list[Callable[[], None]] = [
            self.send,
            self.arrive,
            self.hand_out,
            self.complete,
            self.heed,
            self.pass_time,
        ]
        doings = [*often, *often, self.complete, self.publish, self.lapse]
        for _ in range(steps):
            self.chance.choice(doings)()
            if self.chance.random() < 0.004:
                self.restart()

    def calm_down(self) -> None:
        """Let everything come to its end, without anything new but what was published."""
        self.lapses = False
        for round_ in range(20_000):
            if self.broker.is_done and not self.reactor.outstanding and not self.unheeded:
                break
            self._go_on()
            if round_ % 50 == 49:
                # What was acknowledged by one delivery and nacked by another does not return: the reactor gives it up.
                self.now += REDELIVERY_TIMEOUT / 3
        assert self.broker.is_done, "in the end everything is settled"
        self._check_all_settled()

    def _go_on(self) -> None:
        if self.reactor.halted and not self.works:
            self.is_failing = False
            self.restart()
        self.send()
        self.arrive()
        wakeup = self.reactor.next_wakeup()
        if wakeup is not None:
            self.now = max(self.now, wakeup)
        self.hand_out()
        while self.works:
            self.complete()
        self.heed()

    def check_end(self) -> None:
        """Every handler has seen all that it wants, and where the broker sends all again, nothing old came last."""
        for (consumer, name), progress in self.progress.items():
            wanted = {i for i in range(len(self.broker.keys[name].log)) if self._wants(consumer, i)}
            assert all((name, i) in self.dead for i in wanted - progress.done)
            if self.broker.resends_settled and self.is_strict and progress.applied and "truncate" not in name:
                assert progress.applied[-1] == max(progress.applied), "what was applied last is the newest"


@contextmanager
def naming(seed: int) -> Iterator[None]:
    """Name the seed of what fails here."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


class PoisonedSchedule(Schedule):
    """One key fails each time, and waits long; nothing else fails."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, hold_limit=inf, has_truncates=False, may_halt=False)
        self.poisoned = self.names[0]
        self.is_failing = False
        for consumers in self.consumers.values():
            for consumer in consumers:
                consumer.max_attempts = 1_000_000

    def _try(self, consumer: FakeConsumer, name: str, index: int) -> Verdict:
        return NACK if name == self.poisoned else ACK

    def _delay(self) -> float | None:
        return 10_000.0

    def calm_down_beside_the_poison(self) -> None:
        self.lapses = False
        for _ in range(300):
            self.send()
            self.arrive()
            self.now += 0.1
            for work in self.reactor.ready(self.now):
                self._check_handed(work)
                self.works.append(work)
            while self.works:
                self.complete()
            self.heed()

    @property
    def unsettled_beside_the_poison(self) -> list[str]:
        keys = self.broker.keys.items()
        return [name for name, key in keys if name != self.poisoned and len(key.settled) < len(key.log)]


class ReactorMachine(RuleBasedStateMachine):
    """The same steps in an order that hypothesis chooses, and makes shorter where something fails."""

    @initialize(seed=st.integers(0, 1_000))
    def start(self, seed):
        self.schedule = Schedule(seed)
        self.schedule.publish()

    @rule()
    def publish(self):
        self.schedule.publish()

    @rule()
    def send(self):
        self.schedule.send()

    @rule()
    def arrive(self):
        self.schedule.arrive()

    @rule()
    def hand_out(self):
        self.schedule.hand_out()

    @rule()
    def complete(self):
        self.schedule.complete()

    @rule()
    def heed(self):
        self.schedule.heed()

    @rule()
    def pass_time(self):
        self.schedule.pass_time()

    @rule()
    def restart(self):
        self.schedule.restart()

    def teardown(self):
        if hasattr(self, "schedule"):
            self.schedule.calm_down()
            self.schedule.check_end()


TestReactorMachine = ReactorMachine.TestCase
TestReactorMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

CHUNKS = [range(first, first + 1_000) for first in range(0, 12_000, 1_000)]


def _name(seeds: range) -> str:
    return f"seeds {seeds.start} to {seeds.stop - 1}"


@pytest.mark.parametrize("seeds", CHUNKS, ids=_name)
def test_every_schedule_keeps_order_settles_once_and_comes_to_its_end(seeds):
    for seed in seeds:
        with naming(seed):
            schedule = Schedule(seed)
            schedule.run(steps=150)
            schedule.calm_down()
            schedule.check_end()


def test_a_poisoned_change_delays_its_own_lane_only():
    for seed in range(400):
        with naming(seed):
            schedule = PoisonedSchedule(seed)
            schedule.run(steps=80)
            schedule.calm_down_beside_the_poison()

            assert schedule.unsettled_beside_the_poison == []
            assert schedule.now < 10_000.0


def test_draining_at_any_moment_gives_everything_back():
    for seed in range(400):
        with naming(seed):
            schedule = Schedule(seed)
            schedule.run(steps=seed % 80)
            schedule.restart()

            assert set(schedule.settled) == set(schedule.arrivals)
