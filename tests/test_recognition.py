"""What comes again: left out while that is safe, handled again in order where it is not."""

import random
from collections import deque

import pytest

from cdc_reactor.messages import Delivery, Message
from cdc_reactor.recognition import RECOVERY, Arrivals, Recognition


def delivery(number: int, *, key: str = "k", ack: str = "a") -> Delivery:
    return Delivery(Message(b"", ordering_key=key, message_id=str(number)), f"{ack}{number}")


def deliveries(*numbers: int, key: str = "k", ack: str = "a") -> list[Delivery]:
    return [delivery(n, key=key, ack=ack) for n in numbers]


def ids(found: Arrivals) -> tuple[list[str], list[str], list[str]]:
    """The message ids of what is new, held again, done again."""
    return (
        [d.message.message_id for d in found.new],
        [held.message.message_id for held, _ in found.held_again],
        [d.message.message_id for d in found.done_again],
    )


def test_what_is_held_comes_again_as_itself_with_its_new_delivery():
    recognition = Recognition()
    first = recognition.sort(deliveries(1, 2), 0.0).new

    again = recognition.sort(deliveries(2, 3, ack="b"), 1.0)

    assert ids(again) == (["3"], ["2"], [])
    assert again.held_again[0][0] is first[1]
    assert again.held_again[0][1].ack_id == "b2"


def test_what_was_given_back_is_new_when_it_comes_again():
    recognition = Recognition()
    recognition.given_back(recognition.sort(deliveries(1), 0.0).new)

    assert ids(recognition.sort(deliveries(1, ack="b"), 1.0)) == (["1"], [], [])


def test_what_was_done_too_late_is_acknowledged_and_not_handled_again():
    recognition = Recognition()
    recognition.too_late(recognition.sort(deliveries(1), 0.0).new)

    assert ids(recognition.sort(deliveries(1, 2, ack="b"), 1.0)) == (["2"], [], ["1"])
    assert ids(recognition.sort(deliveries(1, ack="c"), 2.0)) == ([], [], ["1"])


def test_what_was_confirmed_is_left_out_only_while_a_new_stream_recovers():
    recognition = Recognition()
    recognition.confirmed(recognition.sort(deliveries(1), 0.0).new)
    recognition.stream_reopened(10.0)

    assert ids(recognition.sort(deliveries(1, ack="b"), 10.0 + RECOVERY - 1)) == ([], [], ["1"])
    # A subscription that was set back in time: that is wanted.
    assert ids(recognition.sort(deliveries(1, ack="c"), 10.0 + RECOVERY)) == (["1"], [], [])


def test_behind_something_that_is_handled_again_its_key_is_handled_again():
    recognition = Recognition()
    recognition.confirmed(recognition.sort(deliveries(1, 2), 0.0).new)
    recognition.sort(deliveries(3, 4), 0.0)

    # Outside of a recovery, 2 is handled again; 3 and 4, which are held, must follow it once more.
    assert ids(recognition.sort(deliveries(2, 3, ack="b"), 1.0)) == (["2", "3"], [], [])
    assert ids(recognition.sort(deliveries(4, ack="b"), 1.0)) == (["4"], [], [])


def test_another_key_is_not_touched_by_it():
    recognition = Recognition()
    recognition.confirmed(recognition.sort(deliveries(1), 0.0).new)
    recognition.sort(deliveries(9, key="other"), 0.0)

    assert ids(recognition.sort([delivery(1, ack="b"), delivery(9, key="other", ack="b")], 1.0)) == (["1"], ["9"], [])


def test_while_a_stream_recovers_something_unknown_may_be_old_and_its_key_follows_it():
    recognition = Recognition()
    recognition.sort(deliveries(5, 6), 0.0)
    recognition.stream_reopened(1.0)

    # 4 was forgotten here, or is new: nobody can tell, so 5 and 6 follow it.
    assert ids(recognition.sort(deliveries(4, 5, 6, ack="b"), 2.0)) == (["4", "5", "6"], [], [])


def test_an_earlier_delivery_that_ends_after_its_message_was_handed_over_again_touches_nothing():
    recognition = Recognition()
    old = recognition.sort(deliveries(5), 0.0).new
    recognition.stream_reopened(1.0)
    recognition.sort(deliveries(4, 5, ack="b"), 2.0)

    recognition.too_late(old)

    assert len(recognition) == 2
    assert recognition.sort(deliveries(5, key="", ack="c"), 40.0).held_again[0][0].ack_id == "b5"


def test_messages_without_an_id_are_always_new():
    recognition = Recognition()
    nameless = Delivery(Message(b"x"), "a")

    assert recognition.sort([nameless, nameless], 0.0).new == [nameless, nameless]
    assert recognition.sort([nameless], 0.0).new == [nameless]


def test_one_message_twice_in_a_response_is_handled_once():
    assert ids(Recognition().sort([delivery(1), delivery(1, ack="b")], 0.0)) == (["1"], ["1"], [])


def test_what_is_remembered_is_bounded():
    recognition = Recognition(remembered=10)
    for number in range(100):
        recognition.confirmed(recognition.sort(deliveries(number), 0.0).new)
        recognition.too_late(recognition.sort(deliveries(1000 + number), 0.0).new)

    assert len(recognition._confirmed) + len(recognition._confirmed_before) <= 20
    assert len(recognition._too_late) == 10
    assert len(recognition) == 0


class Row:
    """One row's messages at a broker that forgets acknowledgements when it is killed, and our handler of them."""

    def __init__(self, seed: int, length: int) -> None:
        self.random = random.Random(seed)
        self.length = length
        # With a short memory, only what comes while a stream recovers can be told from the new.
        self.is_forgetful = self.random.random() < 0.5
        self.recognition = Recognition(remembered=2 if self.is_forgetful else 1000)
        self.recognition.stream_reopened(0.0)
        self.now = 0.0
        # At the broker: what is acknowledged, what of it is not on disk yet, and the ack ids that are good.
        self.acked: set[int] = set()
        self.recent: deque[int] = deque(maxlen=self.random.choice((1, 4, 50)))
        self.leases: dict[int, str] = {}
        self.next = 0
        self.response = 0
        # Here: what waits for the handler, and what is on its way back.
        self.queue: deque[Delivery] = deque()
        self.acking: list[Delivery] = []
        self.log: list[int] = []

    def deliver(self) -> None:
        """Send the next messages, as an ordered subscription does: behind one that comes again, all that follow it."""
        numbers = range(self.next, min(self.length, self.next + self.random.randint(1, 6)))
        self.next = numbers.stop
        self.response += 1
        sent = deliveries(*numbers, ack=f"{self.response}-")
        self.leases.update((int(d.message.message_id), d.ack_id) for d in sent)
        found = self.recognition.sort(sent, self.now)
        for held, again in found.held_again:
            held.ack_id = again.ack_id
        self.acking += found.done_again
        self.queue += found.new

    def handle(self) -> None:
        for _ in range(min(len(self.queue), self.random.randint(1, 5))):
            delivered = self.queue.popleft()
            self.log.append(int(delivered.message.message_id))
            self.acking.append(delivered)

    def confirm(self) -> None:
        """Acknowledge some; of an ack id that is good no more, the broker says nothing."""
        count = self.random.randint(0, len(self.acking))
        done, self.acking = self.acking[:count], self.acking[count:]
        self.recognition.confirmed(done)
        for delivered in done:
            number = int(delivered.message.message_id)
            if self.leases.get(number) == delivered.ack_id:
                del self.leases[number]
                self.acked.add(number)
                self.recent.append(number)

    def expire(self) -> None:
        """A lease ends: its message comes again, and all behind it."""
        if leased := sorted(self.leases):
            self.next = min(self.next, self.random.choice(leased))
            self.leases = {number: ack_id for number, ack_id in self.leases.items() if number < self.next}

    def kill(self) -> None:
        """The broker loses its last acknowledgements, and every lease."""
        for number in list(self.recent)[self.random.randint(0, len(self.recent)) :]:
            self.acked.discard(number)
        self.recent.clear()
        self.leases.clear()
        self.recognition.stream_reopened(self.now)
        # What was still to come again, acknowledged or not, comes after the restart.
        self.next = min((n for n in range(self.next) if n not in self.acked), default=self.next)

    def pass_time(self) -> None:
        if not self.is_forgetful:
            self.now += self.random.choice((1.0, RECOVERY))

    def finish(self) -> None:
        while self.queue or self.acking or self.next < self.length or self.leases:
            self.deliver()
            self.handle()
            self.confirm()
            if not (self.queue or self.acking) and self.next == self.length:
                self.expire()


@pytest.mark.parametrize("seeds", [range(start, start + 500) for start in range(0, 4000, 500)])
def test_whatever_a_broker_forgets_a_row_never_skips_and_ends_at_its_last_change(seeds):
    for seed in seeds:
        row = Row(seed, length=30)
        steps = [row.deliver, row.deliver, row.handle, row.handle, row.confirm, row.pass_time, row.expire]
        for _ in range(row.random.randint(20, 120)):
            row.random.choice([*steps, row.kill] if row.random.random() < 0.3 else steps)()
        row.finish()

        highest = -1
        for before, number in zip([-1, *row.log], row.log, strict=False):
            assert number <= highest + 1, f"seed {seed}: {number} came before {highest + 1}: {row.log}"
            assert number <= before + 1, f"seed {seed}: {number} came after {before}: {row.log}"
            highest = max(highest, number)
        assert row.log[-1] == row.length - 1, f"seed {seed}: {row.log}"


def test_what_was_acknowledged_after_all_is_handled_again_when_somebody_sets_the_subscription_back():
    recognition = Recognition()
    recognition.too_late(recognition.sort(deliveries(1), 0.0).new)
    recognition.confirmed(recognition.sort(deliveries(1, ack="b"), 1.0).done_again)

    assert ids(recognition.sort(deliveries(1, ack="c"), 3600.0)) == (["1"], [], [])
