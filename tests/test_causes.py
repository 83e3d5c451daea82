"""Causes: an event has one id however often what it came from is handled, and no two events have the same."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cdc_reactor import Batch, Context, Event, Handler, Row, handles
from cdc_reactor.causes import BatchCause, MessageCause
from cdc_reactor.changes import CHANGE_OF, Change, RowReader
from cdc_reactor.columns import Placeholder
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope
from cdc_reactor.events import EVENT_ID, Publication
from cdc_reactor.execution import Executor
from cdc_reactor.messages import Delivery, Message, Verdict
from cdc_reactor.reactor import Held, Route, Work


class User(Row, table="public.users"):
    id: int


class Line(Row, table="public.users", key=()):
    text: str


class Touched(Event, topic="touched.v1"):
    """The same for every change, so that only its cause tells one from another."""


def held(after: dict[str, Any], row: type[Row] = User, **options: Any) -> Held:
    source = {"name": "forum", "schema": "public", "table": "users", "lsn": 1, **options.pop("source", {})}
    body = {"before": options.pop("before", None), "after": after, "source": source, "op": options.pop("op", "c")}
    message = Message(json.dumps(body).encode(), **options)
    envelope = Decoder().decode(message)
    assert isinstance(envelope, Envelope)
    change = CHANGE_OF[envelope.op](envelope, RowReader(row, Placeholder()))
    return Held(Delivery(message, message.message_id), change, Route("users", ()), message.ordering_key or id(change))


def users(*ids: int) -> list[Held]:
    """Make a create of each; each has a log position of its own."""
    return [held({"id": n}, source={"lsn": 100 + n}) for n in ids]


def batch_of(*helds: Held) -> tuple[BatchCause, Batch[Any]]:
    cause = BatchCause(helds, [h.subject for h in helds])
    return cause, cause.batch()


def identity(of: Held) -> str:
    cause, batch = batch_of(of)
    next(iter(batch))
    return cause.identity()


def seen(cause: BatchCause) -> Change[Any] | None:
    return cause.left_at if cause.at is None else cause.at


class TestMessages:
    def test_an_event_is_named_by_its_own_id_so_that_publishing_it_twice_changes_nothing(self):
        first = Message(b"", {EVENT_ID: "0f3a91c2d47b5e68"}, message_id="1")
        again = Message(b"", {EVENT_ID: "0f3a91c2d47b5e68"}, message_id="2")

        assert (MessageCause(first).identity(), MessageCause(again).identity()) == ("0f3a91c2d47b5e68",) * 2

    def test_without_one_the_message_is_named_by_its_id_and_a_dead_letter_by_its_first(self):
        plain = MessageCause(Message(b"", message_id="7"))
        redriven = MessageCause(Message(b"", {"cdc_message_id": "7"}, message_id="8"))

        assert (plain.identity(), redriven.identity()) == ("7", "7")
        assert MessageCause(Message(b"")).identity() == ""

    def test_its_trace_goes_on(self):
        assert MessageCause(Message(b"", {"traceparent": "00-a", "x": "y"})).trace() == {"traceparent": "00-a"}


class TestChanges:
    def test_debezium_publishes_a_change_again_and_it_is_the_same(self):
        first = held({"id": 1}, message_id="1", attributes={"traceparent": "a"})
        again = held({"id": 1}, message_id="2", attributes={"traceparent": "b"})

        assert identity(first) == identity(again) != ""

    @pytest.mark.parametrize(
        "other",
        [
            held({"id": 2}),
            held({"id": 1}, source={"lsn": 2}),
            held({"id": 1}, source={"name": "other"}),
            held({"id": 1}, source={"table": "posts"}),
            held({"id": 1}, source={"schema": "private"}),
            held({"id": 1}, op="u"),
            held({"id": 1}, ordering_key="k"),
        ],
        ids=["row", "lsn", "connector", "table", "schema", "op", "ordering key"],
    )
    def test_whatever_tells_a_change_from_another_tells_its_name(self, other):
        assert identity(held({"id": 1})) != identity(other)

    def test_rows_of_one_copy_that_have_no_key_are_told_apart_by_their_columns(self):
        one, other = (held({"text": text}, Line, ordering_key="default") for text in "ab")

        assert identity(one) != identity(other)

    def test_without_a_log_position_the_message_must_tell(self):
        strange = [held({"id": 1}, source={"lsn": None, "ts_ms": 5}, message_id=n) for n in ("1", "2", "")]

        assert identity(strange[0]) != identity(strange[1])
        assert identity(strange[2]) == ""


class TestLoops:
    def test_the_batch_is_a_tuple_equal_to_a_plain_one(self):
        helds = users(1, 2)
        _, batch = batch_of(*helds)

        assert batch == Batch(h.subject for h in helds)
        assert isinstance(batch, Batch)
        assert (len(batch), batch[1], batch.table_id) == (2, helds[1].subject, helds[1].subject.table_id)
        assert type(pickle.loads(pickle.dumps(batch_of()[1]))) is Batch

    def test_in_a_loop_it_is_the_change_and_around_it_the_batch(self):
        cause, batch = batch_of(*users(1, 2))

        whole = cause.identity()
        each = [cause.identity() for _ in batch]

        assert each == [identity(h) for h in users(1, 2)]
        assert cause.identity() == whole
        assert whole not in each

    def test_a_loop_that_is_left_stays_at_its_last_change_until_another_begins(self):
        cause, batch = batch_of(*users(1, 2, 3))

        for change in batch:
            if change is batch[1]:
                break
        left = seen(cause)
        for _ in batch:
            assert seen(cause) is not left or left is cause.at

        assert left is batch[1]
        assert seen(cause) is None

    def test_an_inner_loop_gives_back_to_the_outer_whether_it_ends_or_is_left(self):
        cause, batch = batch_of(*users(1, 2, 3))

        for outer in batch:
            assert [seen(cause) for _ in batch] == list(batch[:])
            assert seen(cause) is outer
            assert any(inner is batch[0] for inner in batch)
            assert seen(cause) is outer

        assert seen(cause) is None

    def test_a_loop_that_fails_and_is_caught_is_left_like_any_other(self):
        cause, batch = batch_of(*users(1, 2))

        def fail() -> None:
            for _ in batch:
                raise KeyError

        with pytest.raises(KeyError):
            fail()

        assert seen(cause) is batch[0]

    @pytest.mark.parametrize(
        "take", [list, sorted, lambda b: b[:], lambda b: [b[0]]], ids=["list", "sorted", "slice", "index"]
    )
    def test_what_takes_changes_out_speaks_for_the_whole_batch(self, take: Callable[[Any], list[Any]]):
        cause, batch = batch_of(*users(1))

        taken = take(batch)

        assert len(taken) == 1
        assert seen(cause) is None

    def test_another_cut_is_another_batch(self):
        cuts = [users(1), users(2), users(1, 2), users(2, 1), users(1, 2, 3)]

        assert len({batch_of(*cut)[0].identity() for cut in cuts}) == len(cuts)

    def test_a_batch_with_a_change_that_has_no_name_has_none_either(self):
        nameless = held({"id": 1}, source={"lsn": None})

        assert batch_of(*users(1), nameless)[0].identity() == ""

    def test_the_trace_is_the_changes_own_and_the_batchs_where_all_share_it(self):
        traced = [held({"id": n}, attributes={"traceparent": t}) for n, t in enumerate("aab")]
        cause, batch = batch_of(*traced)
        shared, _ = batch_of(*traced[:2])

        assert [dict(cause.trace()) for _ in batch] == [{"traceparent": t} for t in "aab"]
        assert (dict(cause.trace()), dict(shared.trace())) == ({}, {"traceparent": "a"})

    def test_nothing_is_computed_until_something_is_published(self):
        unreadable = held({"id": 1})
        cause, batch = batch_of(unreadable)

        assert list(batch) == [unreadable.subject]
        assert unreadable.subject._wire is None
        assert cause._held_of is None


def published(helds: Sequence[Held], handler: Handler[Any]) -> list[str]:
    outcome = Executor(None).run(Work(handler, list(helds), None))
    return [p.attributes[EVENT_ID] for p in outcome.events if isinstance(p, Publication)]


@handles(User)
def touch(batch: Batch[User], ctx: Context) -> None:
    for _ in batch:
        ctx.publish(Touched())
        ctx.publish(Touched())


class TestIds:
    def test_a_change_handled_again_in_another_batch_publishes_the_same_ids(self):
        alone, among_others = published(users(2), touch), published(users(1, 2, 3), touch)

        assert alone == among_others[2:4]

    def test_equal_events_of_different_changes_and_of_one_change_have_different_ids(self):
        ids = published(users(1, 2, 3), touch)

        assert len(set(ids)) == len(ids) == 6

    def test_another_handler_publishes_other_ids(self):
        other = handles(User, name="other")(touch.function)

        assert not set(published(users(1), touch)) & set(published(users(1), other))

    def test_the_trace_of_each_change_goes_on_with_its_events(self):
        helds = [held({"id": n}, attributes={"traceparent": str(n)}) for n in (1, 2)]

        events = Executor(None).run(Work(touch, helds, None)).events

        assert [p.attributes["traceparent"] for p in events] == ["1", "1", "2", "2"]

    @pytest.mark.parametrize("seed", range(50))
    def test_however_batches_are_cut_again_after_failures_no_two_events_share_an_id(self, seed):
        chance = random.Random(seed)
        cause_of: dict[str, set[tuple[int, ...]]] = {}
        told: list[tuple[int, ...]] = []

        @handles(User)
        def moody(batch: Batch[User], ctx: Context) -> None:
            ids = tuple(change.after.id for change in list(batch) if change.after is not None)
            ctx.publish(Touched())
            mine = [ids]
            for change in batch:
                assert change.after is not None
                # Of equal ones some are published, others not: their number alone tells nothing.
                if chance.random() < 0.7 and any(other.after == change.after for other in batch):
                    ctx.publish(Touched())
                    mine.append((change.after.id,) * 2)
                if chance.random() < 0.1:
                    raise ValueError
            ctx.publish(Touched())
            told.extend([*mine, (*ids, -1)])

        waiting = users(*range(12))
        for _ in range(20):
            waiting = chance.sample(waiting, len(waiting))
            taken = waiting[: chance.randint(1, 12)]
            outcome = Executor(None).run(Work(moody, taken, None))
            for event, mine in zip(outcome.events, told, strict=True):
                cause_of.setdefault(event.attributes[EVENT_ID], set()).add(mine)
            told.clear()
            # Some acknowledgements get lost, so what succeeded comes again too.
            done = [
                h for h, v in zip(taken, outcome.verdicts, strict=True) if v is Verdict.ACK and chance.random() < 0.5
            ]
            waiting = [h for h in waiting if h not in done] or users(*range(12))

        assert [causes for causes in cause_of.values() if len(causes) > 1] == []


@pytest.mark.parametrize("event_id", ["user_signed_up", "7", "", "order-42/v7"])
def test_an_attribute_that_may_be_no_id_is_not_taken_for_one(event_id):
    assert MessageCause(Message(b"", {EVENT_ID: event_id}, message_id="m1")).identity() == "m1"
