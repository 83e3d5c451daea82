"""Responses as we read them, against the service's own message classes."""

from typing import Any

from google.pubsub_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from cdc_reactor.messages import NO_ATTRIBUTES, Delivery, Message
from cdc_reactor.pubsub_responses import Deliveries, parse_response

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECEIVED: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    ack_id=TEXTS,
    delivery_attempt=st.integers(0, 100),
    message=st.builds(
        dict,
        data=st.binary(max_size=50),
        attributes=st.dictionaries(TEXTS, TEXTS, max_size=4),
        message_id=TEXTS,
        ordering_key=TEXTS,
        publish_time=st.just({"seconds": 1, "nanos": 2}),
    ),
)


def encoded(received: list[dict[str, Any]]) -> bytes:
    response = types.StreamingPullResponse(
        received_messages=received, subscription_properties={"message_ordering_enabled": True}
    )
    return bytes(types.StreamingPullResponse.serialize(response))


@given(st.lists(st.lists(RECEIVED, max_size=4), max_size=3))
def test_a_response_says_what_it_says_by_the_services_own_classes(responses):
    deliveries = Deliveries()

    for received in responses:
        assert deliveries.of(parse_response(encoded(received))) == [
            Delivery(
                Message(
                    each["message"]["data"],
                    each["message"]["attributes"] or NO_ATTRIBUTES,
                    each["message"]["ordering_key"],
                    each["message"]["message_id"],
                ),
                each["ack_id"],
                each["delivery_attempt"] or 1,
            )
            for each in received
        ]


def test_messages_with_the_same_attributes_share_them_and_what_is_known_is_bounded():
    deliveries = Deliveries()
    same = [{"ack_id": "a", "message": {"attributes": {"op": "c", "table": "users"}}}] * 2

    first, second = deliveries.of(parse_response(encoded(same)))

    assert first.message.attributes is second.message.attributes
    for number in range(1_500):
        other = [{"ack_id": "a", "message": {"attributes": {"traceparent": str(number)}}}]
        assert deliveries.of(parse_response(encoded(other)))[0].message.attributes == {"traceparent": str(number)}
    assert len(deliveries._known) <= 1_000
