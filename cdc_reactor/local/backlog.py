"""What one subscription has not seen acknowledged: who gets it next, what is out, what comes again. Pure.

    fresh ─────────────┐
    again, delayed ────┼─▶ take ─▶ leases ─▶ ack ─▶ gone (or kept, where acked messages are retained)
    lanes that wait ───┘               └────▶ nack, expiry ─▶ again, delayed, lanes, or the dead-letter topic

Messages never delivered wait in `fresh`, in the order of publication, and cost one reference each. The rules of lanes
are in `lanes`. Retry policies hold a message back after a nack or an expiry, without one it is there at once. After
seek all leases are dead. Time is whatever the caller passes as `now`, in seconds since 1970 (never decreasing); every
method that has it ends expired leases first. Not thread-safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf

from cdc_reactor.local.journal import Journal, Op
from cdc_reactor.local.lanes import Lane
from cdc_reactor.local.leases import Consumer, Lease, Leases
from cdc_reactor.local.options import SubscriptionOptions
from cdc_reactor.local.stored_messages import StoredMessage


class Counts:
    """What happened since the broker began."""

    __slots__ = ("acked", "dead_lettered", "delivered", "duplicated", "expired", "nacked", "published")

    def __init__(self) -> None:
        self.published = self.delivered = self.acked = self.nacked = self.expired = 0
        self.dead_lettered = self.duplicated = 0


class Backlog:
    """The messages and leases of one subscription.

    `dead_letter` publishes a lease's message to the dead-letter topic and tells whether it could.
    """

    def __init__(
        self,
        uid: int,
        options: SubscriptionOptions,
        *,
        nonce: str,
        journal: Journal,
        dead_letter: Callable[[Lease, float], bool] = lambda _lease, _now: False,
    ) -> None:
        self.uid = uid
        self.options = options
        self.counts = Counts()
        self.consumers: list[Consumer] = []
        #: How many of the next deliveries come twice (a fault that tests ask for).
        self.duplicates = 0
        self._journal = journal
        self._dead_letter = dead_letter
        self._leases = Leases(nonce)
        self._fresh: deque[StoredMessage] = deque()
        self._again: deque[Lease] = deque()
        self._delayed: list[tuple[float, int, Lease | Lane]] = []
        self._sequence = 0
        self._lanes: dict[str, Lane] = {}
        self._ready: dict[Lane, None] = {}
        self._retained: dict[int, StoredMessage] = {}
        self._size = 0

    # ── what is in it ──

    def __len__(self) -> int:
        """How many messages are not finally acked."""
        return self._size

    @property
    def outstanding(self) -> int:
        """How many messages are leased."""
        return len(self._leases)

    def unacked(self) -> list[StoredMessage]:
        """Return the messages that are not finally acked, in the order of publication."""
        found = list(self._fresh)
        found += (lease.message for lease in self._again)
        found += (entry.message for _, _, entry in self._delayed if isinstance(entry, Lease))
        found += (lease.message for lease in self._leases.all() if lease.lane is None)
        for lane in self._lanes.values():
            found += (lease.message for lease in lane.out if not lease.is_final)
            found += (_message(entry) for entry in lane.waiting)
        found.sort(key=_seq)
        return found

    # ── publishing ──

    def add(self, messages: Sequence[StoredMessage]) -> None:
        """Take in published messages that pass the filter, in order; wake whoever waits."""
        accepts = self.options.accepts
        if accepts is not None:
            messages = [message for message in messages if accepts(message.attributes())]
        for message in messages:
            message.holders += 1
        self._fresh.extend(messages)
        self._size += len(messages)
        self.counts.published += len(messages)
        if messages:
            self.wake()

    def retain(self, message: StoredMessage) -> None:
        """Take in a message that was acked before (from the store)."""
        if self.options.retains_acked:
            message.holders += 1
            self._retained[message.seq] = message

    # ── delivering ──

    def attach(self, consumer: Consumer) -> None:
        """Let a consumer take part."""
        self.consumers.append(consumer)

    def detach(self, consumer: Consumer) -> None:
        """Let a consumer go; what it holds stays leased until its deadline."""
        consumer.is_open = False
        if consumer in self.consumers:
            self.consumers.remove(consumer)
        for lane in list(consumer.lanes):
            lane.leave_line()
            self._line_up(lane)

    def wake(self) -> None:
        """Tell every consumer that has room that there may be something for it."""
        for consumer in self.consumers:
            if not consumer.is_full:
                consumer.wake()

    def take(self, consumer: Consumer, now: float, *, max_messages: float = inf, max_bytes: float = inf) -> list[Lease]:
        """Hand out and lease what the consumer may have now, redeliveries first, each in order.

        One message always goes, however large, where nothing is outstanding.
        """
        self.tick(now)
        basket = _Basket(consumer, max_messages, max_bytes, horizon=now - self.options.retention)
        if basket.count > 0:
            self._take_lanes(consumer.lanes, basket)
            self._take_lanes(self._ready, basket)
            self._take_again(basket)
            self._take_fresh(basket)
        taken = basket.leases
        if taken:
            self._leases.grant(taken, consumer, now + consumer.deadline)
            self.counts.delivered += len(taken)
            if self.duplicates:
                self._duplicate(taken)
        return taken

    def _take_lanes(self, line: dict[Lane, None], basket: _Basket) -> None:
        while line and basket.count > 0:
            lane = next(iter(line))
            while lane.waiting and basket.fits(_message(lane.waiting[0])):
                self._take_from(lane, basket)
            if lane.waiting:
                return
            self._line_up(lane)

    def _take_from(self, lane: Lane, basket: _Basket) -> None:
        entry = lane.waiting.popleft()
        if _message(entry).published < basket.horizon:
            self._drop(_message(entry))
            return
        lease = entry if isinstance(entry, Lease) else Lease(entry, lane)
        lease.is_acked = False
        lane.consumer = basket.consumer
        lane.join(basket.consumer.lanes)
        lane.out.append(lease)
        basket.put(lease)

    def _take_again(self, basket: _Basket) -> None:
        again = self._again
        while again and basket.fits(again[0].message):
            lease = again.popleft()
            if lease.message.published < basket.horizon:
                self._drop(lease.message)
            else:
                basket.put(lease)

    def _take_fresh(self, basket: _Basket) -> None:
        fresh = self._fresh
        while fresh and basket.count > 0:
            message = fresh[0]
            if message.published < basket.horizon:
                self._drop(message)
            elif message.key and self.options.is_ordered:
                if not self._take_ordered(message, basket):
                    return
            elif basket.fits(message):
                basket.put(Lease(message))
            else:
                return
            fresh.popleft()

    def _take_ordered(self, message: StoredMessage, basket: _Basket) -> bool:
        """Hand a fresh message of a lane out, or let it wait in its lane; tell whether it found a place."""
        lane = self._lanes.get(message.key)
        if lane is not None and (lane.waiting or (lane.out and lane.consumer is not basket.consumer)):
            lane.waiting.append(message)
            self._line_up(lane)
            return True
        if not basket.fits(message):
            return False
        if lane is None:
            lane = self._lanes[message.key] = Lane(message.key)
        lease = Lease(message, lane)
        lane.consumer = basket.consumer
        lane.out.append(lease)
        basket.put(lease)
        return True

    def _duplicate(self, taken: Sequence[Lease]) -> None:
        """Let the first of these come twice, as the service now and then does; never with exactly-once.

        What was just handed out keeps its ack id, which is dead; a twin comes again.
        """
        if self.options.is_exactly_once:
            return
        chosen = taken[: self.duplicates]
        self.duplicates -= len(chosen)
        self.counts.duplicated += len(chosen)
        for lease in chosen:
            if self._leases.find(lease.ack_id) is not lease:
                continue  # its twin is on the way already, behind an earlier one of its lane
            if lease.lane is None:
                self._again.append(self._twin(lease))
            else:
                twins = [self._twin(one) for one in lease.lane.take_back(lease)]
                lease.lane.waiting.extendleft(reversed(twins))
                self._line_up(lease.lane)
        self.wake()

    def _twin(self, lease: Lease) -> Lease:
        ack_id = lease.ack_id
        self._leases.release(lease)
        lease.ack_id = ack_id
        twin = Lease(lease.message, lease.lane)
        twin.attempt = lease.attempt
        return twin

    # ── settling ──

    def acknowledge(self, ack_ids: Iterable[str], now: float) -> list[str]:
        """Acknowledge; return the ack ids that count no more (never given, dead or expired)."""
        self.tick(now)
        invalid = []
        relieved: set[Consumer] = set()
        find, release = self._leases.find, self._leases.release
        for ack_id in dict.fromkeys(ack_ids):
            lease = find(ack_id)
            if lease is None:
                invalid.append(ack_id)
                continue
            release(lease)
            relieved.add(lease.consumer)
            self.counts.acked += 1
            if lease.lane is None:
                self._finish(lease.message)
            else:
                self._acknowledge_in_lane(lease, lease.lane)
        for consumer in relieved:
            if consumer.is_open:
                consumer.wake()
        return invalid

    def _acknowledge_in_lane(self, lease: Lease, lane: Lane) -> None:
        lease.is_acked = True
        if self.options.is_exactly_once:
            lease.is_final = True
            self._finish(lease.message)
        self._finish_front(lane)
        if not lane.out:
            self._line_up(lane)

    def is_ack_id(self, ack_id: str) -> bool:
        """Tell whether this looks like an ack id of this broker, now or before a restart."""
        return self._leases.is_ack_id(ack_id)

    def modify(self, ack_ids: Iterable[str], seconds: float, now: float) -> list[str]:
        """Let leases end so many seconds from now; 0 gives the messages back. Return the ack ids that do not count."""
        self.tick(now)
        invalid, given_back = [], []
        for ack_id in dict.fromkeys(ack_ids):
            lease = self._leases.find(ack_id)
            if lease is None:
                invalid.append(ack_id)
            elif seconds:
                self._leases.extend(lease, now + seconds)
            else:
                given_back.append(lease)
        if given_back:
            self.counts.nacked += len(given_back)
            given_back.sort(key=_lease_seq)
            self._give_back(given_back, now)
        return invalid

    def tick(self, now: float) -> None:
        """End the leases whose time is over; let come again what waited long enough."""
        if self._leases.next_end() <= now:
            expired = self._leases.expired(now)
            self.counts.expired += len(expired)
            self._give_back(expired, now)
        is_due = False
        while self._delayed and self._delayed[0][0] <= now:
            _, _, entry = heappop(self._delayed)
            is_due = True
            if isinstance(entry, Lease):
                self._again.append(entry)
            elif entry.due <= now:
                entry.due = 0.0
                self._line_up(entry)
        if is_due:
            self.wake()

    def next_wakeup(self) -> float:
        """Return when `tick` has something to do, infinity for never."""
        return min(self._leases.next_end(), self._delayed[0][0] if self._delayed else inf)

    def _give_back(self, leases: Sequence[Lease], now: float) -> None:
        """Take leases back, oldest first; all of them count a failed attempt."""
        failed = {lease: lease.attempt for lease in leases}
        for lease, attempt in failed.items():
            lease.attempt = attempt + 1
        for lease in leases:
            if not lease.ack_id:
                continue  # came back behind an earlier one of its lane
            if lease.lane is not None:
                self._give_back_lane(lease, lease.lane, failed, now)
            else:
                self._leases.release(lease)
                if not self._is_dead(lease, failed, now):
                    self._wait(lease, failed[lease], now)
        self.wake()

    def _wait(self, lease: Lease, attempt: int, now: float) -> None:
        delay = self.options.retry.delay(attempt) if self.options.retry else 0.0
        if delay:
            self._delay(now + delay, lease)
        else:
            self._again.append(lease)

    def _give_back_lane(self, first: Lease, lane: Lane, failed: dict[Lease, int], now: float) -> None:
        delay = 0.0
        kept = []
        for lease in lane.take_back(first):
            if lease.ack_id:
                self._leases.release(lease)
            if lease.is_final:
                continue
            if lease in failed:
                if self._is_dead(lease, failed, now):
                    continue
                if self.options.retry:
                    delay = max(delay, self.options.retry.delay(failed[lease]))
            kept.append(lease)
        lane.waiting.extendleft(reversed(kept))
        if delay and lane.waiting:
            lane.due = max(lane.due, now + delay)
            lane.leave_line()
            self._delay(lane.due, lane)
        self._finish_front(lane)
        self._line_up(lane)

    def _finish_front(self, lane: Lane) -> None:
        for finished in lane.finished():
            if not finished.is_final:
                self._finish(finished.message)

    def _is_dead(self, lease: Lease, failed: dict[Lease, int], now: float) -> bool:
        """Forward to the dead-letter topic what failed often enough; where that is gone the message comes again."""
        policy = self.options.dead_letter
        if policy is None or failed[lease] < policy.max_attempts or not self._dead_letter(lease, now):
            return False
        self.counts.dead_lettered += 1
        self._finish(lease.message)
        return True

    def _delay(self, due: float, entry: Lease | Lane) -> None:
        self._sequence += 1
        heappush(self._delayed, (due, self._sequence, entry))

    def _line_up(self, lane: Lane) -> None:
        """Let a lane stand where it will be served next: with its consumer, with all, or nowhere."""
        if lane.is_empty:
            lane.leave_line()
            if self._lanes.get(lane.key) is lane:
                del self._lanes[lane.key]
            return
        if not lane.out:
            lane.consumer = None
        if not lane.waiting or lane.due:
            lane.leave_line()
        elif lane.consumer is None:
            lane.join(self._ready)
            self.wake()
        elif lane.consumer.is_open:
            lane.join(lane.consumer.lanes)
            lane.consumer.wake()
        else:
            lane.leave_line()  # waits until what the dead stream holds has expired

    # ── the end of messages ──

    def _finish(self, message: StoredMessage) -> None:
        """Count a message as acked for good."""
        self._size -= 1
        if self.options.retains_acked:
            self._retained[message.seq] = message
            self._journal.note(Op.ACKED, (self.uid, message.seq))
        elif not let_go(message, self._journal):
            self._journal.note(Op.ACKED, (self.uid, message.seq))

    def _drop(self, message: StoredMessage) -> None:
        """Forget a message that was never acked: its retention is over."""
        self._size -= 1
        if not let_go(message, self._journal):
            self._journal.note(Op.ACKED, (self.uid, message.seq))

    def purge(self, now: float) -> None:
        """Forget what is older than the retention and not out."""
        horizon = now - self.options.retention
        while self._fresh and self._fresh[0].published < horizon:
            self._drop(self._fresh.popleft())
        for message in [message for message in self._retained.values() if message.published < horizon]:
            del self._retained[message.seq]
            let_go(message, self._journal)

    def configure(self, options: SubscriptionOptions) -> None:
        """Go on with other options."""
        self.options = options
        if not options.retains_acked:
            for message in self._retained.values():
                let_go(message, self._journal)
            self._retained.clear()
        self.wake()

    def clear(self) -> None:
        """Forget everything: the subscription is deleted or detached."""
        for message in (*self.unacked(), *self._retained.values()):
            let_go(message, self._journal)
        self._empty()
        self._retained.clear()
        for consumer in self.consumers:
            consumer.wake()

    def restart(self, nonce: str) -> None:
        """Forget all leases and attempts, and who was consuming; everything unacked is fresh again."""
        unacked = self.unacked()
        self._empty()
        self._leases = Leases(nonce)
        self._fresh.extend(unacked)
        self._size = len(unacked)

    # ── seek ──

    def seek(self, wanted: Callable[[StoredMessage], bool], others: Iterable[StoredMessage] = ()) -> None:
        """Make unacked what is wanted of all that is known here, and of `others`; everything else is acked.

        All leases are dead afterwards. Attempts are counted anew.
        """
        unacked = {message.seq: message for message in self.unacked()}
        known = {message.seq: message for message in others if self._accepts(message)} | self._retained | unacked
        chosen = {seq: known[seq] for seq in sorted(known) if wanted(known[seq])}
        self._empty()
        for seq, message in chosen.items():
            if seq not in unacked:
                self._unack(message)
        for seq, message in unacked.items():
            self._size += 1
            if seq not in chosen:
                self._finish(message)
        self._fresh.extend(chosen.values())
        self._size = len(chosen)
        self.wake()

    def _unack(self, message: StoredMessage) -> None:
        if self._retained.pop(message.seq, None) is None:
            message.holders += 1
        self._journal.note(Op.UNACKED, (self.uid, message.seq))
        if message.seq < self.uid:
            # Published before the subscription was made; nothing else would tell that it holds the message.
            self._journal.note(Op.HELD, (self.uid, message.seq))

    def _accepts(self, message: StoredMessage) -> bool:
        return self.options.accepts is None or self.options.accepts(message.attributes())

    def _empty(self) -> None:
        self._leases.clear()
        self._fresh.clear()
        self._again.clear()
        self._delayed.clear()
        for lane in self._lanes.values():
            lane.leave_line()
        self._lanes.clear()
        self._size = 0


class _Basket:
    """What one `take` may still put in: so many messages, the consumer's flow control, the size of a response.

    What was published before `horizon` is out of date.
    """

    __slots__ = ("_left", "_room", "consumer", "count", "horizon", "leases")

    def __init__(self, consumer: Consumer, max_messages: float, max_bytes: float, *, horizon: float) -> None:
        self.consumer = consumer
        self.count = min(max_messages, consumer.max_messages - consumer.outstanding)
        self.horizon = horizon
        self.leases: list[Lease] = []
        self._room = consumer.max_bytes - consumer.outstanding_bytes
        self._left = min(self._room, max_bytes)

    def fits(self, message: StoredMessage) -> bool:
        if message.size_bytes <= self._left:
            return self.count > 0
        # The first goes however large it is for a response; for flow control only where nothing is outstanding.
        is_allowed = message.size_bytes <= self._room or not self.consumer.outstanding
        return is_allowed and not self.leases and self.count > 0

    def put(self, lease: Lease) -> None:
        self.leases.append(lease)
        self.count -= 1
        self._left -= lease.message.size_bytes


def let_go(message: StoredMessage, journal: Journal) -> bool:
    """Let one holder go; tell whether it was the last, after which nobody needs the message."""
    message.holders -= 1
    if message.holders:
        return False
    journal.note(Op.GONE, (message.seq,))
    return True


def _message(entry: Lease | StoredMessage) -> StoredMessage:
    return entry.message if isinstance(entry, Lease) else entry


def _seq(message: StoredMessage) -> int:
    return message.seq


def _lease_seq(lease: Lease) -> int:
    return lease.message.seq
