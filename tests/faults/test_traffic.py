"""What is published is what Debezium publishes, and says which change of which row it is."""

from __future__ import annotations

from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope
from cdc_reactor.messages import Message
from tests.faults.checker import Letter
from tests.faults.traffic import (
    Change,
    body,
    flaky,
    letter,
    ordering_key,
    poison,
    poisoned,
    published,
    requests,
    schedule,
)


def test_bodies_are_envelopes_of_the_captured_table_with_row_and_place_in_them():
    for change, op in ((Change(3, 0), "c"), (Change(3, 7), "u")):
        envelope = Decoder().decode(Message(body(change), ordering_key=ordering_key(3)))
        assert isinstance(envelope, Envelope)
        assert (str(envelope.source.table_id), envelope.op.value) == ("public.users", op)
        assert letter(body(change)) == Letter(3, change.seq, body(change))


def test_bodies_can_be_made_longer_and_say_the_same():
    longer = body(Change(3, 7), size_bytes=2048)

    assert len(longer) == 2048
    assert letter(longer)[:2] == (3, 7)


def test_a_schedule_has_all_rows_in_order_mixed_by_its_seed():
    found = schedule(12, 3, seed=1)

    assert published(found) == {1: 4, 2: 4, 3: 4}
    assert [c.seq for c in found if c.row == 2] == [0, 1, 2, 3]
    assert found != schedule(12, 3, seed=2)
    assert [c.seq for c in schedule(4, 2, seed=1, first_seq=5)] == [5, 5, 6, 6]


def test_poison_is_exactly_its_share_and_only_in_the_first_rows():
    found = poisoned(schedule(1000, 10, seed=1), 0.01, 2, seed=1)

    assert sum(c.is_poison for c in found) == len(poison(found)) == 10
    assert {c.row for c in found if c.is_poison} <= {1, 2}
    assert all(b'"poison"' in data for data in poison(found).values())


def test_flaky_changes_are_exactly_their_share():
    found = flaky(schedule(1000, 10, seed=1), 0.05, seed=1)

    assert sum(c.handle == "flaky" for c in found) == 50
    assert poison(found) == {}


def test_a_request_has_the_changes_of_one_row_in_their_order():
    found = requests("projects/p/topics/t", schedule(6, 2, seed=1))

    assert sorted([(m.ordering_key, letter(m.data).seq) for m in request.messages] for request in found) == [
        [('{"id":1}', 0), ('{"id":1}', 1), ('{"id":1}', 2)],
        [('{"id":2}', 0), ('{"id":2}', 1), ('{"id":2}', 2)],
    ]
