"""Bytes written by hand are what protobuf reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc_reactor.local import protos, wire
from cdc_reactor.local.leases import Lease
from cdc_reactor.local.stored_messages import StoredMessage
from cdc_reactor.local.streams import encoded

texts = st.text(max_size=30)
pairs = st.dictionaries(texts, texts, max_size=4)


@given(
    attributes=st.tuples(pairs, pairs),
    body=st.tuples(st.binary(max_size=300), texts),
    ack_id=st.text("abc", min_size=128, max_size=200),
    micros=st.integers(0, 10**16),
    attempt=st.integers(1, 1000),
)
def test_a_spliced_response_reads_as_the_message_that_was_published(attributes, body, ack_id, micros, attempt):
    (own, more), (data, key) = attributes, body
    published = protos.PubsubMessage(data=data, attributes=own, ordering_key=key)
    written = published.SerializeToString() + wire.attributes(more)
    stamp = wire.stamp("10000000000000001", wire.timestamp(micros / 1_000_000))
    lease = Lease(StoredMessage(1, written, stamp=stamp, published=0.0, key=key))
    lease.ack_id, lease.attempt = ack_id, attempt

    response = protos.PullResponse.FromString(b"".join(encoded([lease, lease], tells_attempts=True)))

    assert [received.ack_id for received in response.received_messages] == [ack_id, ack_id]
    message = response.received_messages[1].message
    assert (message.data, dict(message.attributes), message.ordering_key) == (data, {**own, **more}, key)
    assert (message.message_id, response.received_messages[0].delivery_attempt) == ("10000000000000001", attempt)
    assert abs(message.publish_time.ToMicroseconds() - micros) <= 1
    assert lease.message.body == written
    assert lease.message.attributes() == {**own, **more}


def test_fields_of_other_kinds_are_passed_over():
    unknown = b"\x78\x96\x01" + b"\x7d1234" + b"\x7912345678"

    assert wire.read_attributes(unknown + wire.attributes({"a": "1"}) + unknown) == {"a": "1"}
