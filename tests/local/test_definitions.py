"""Definitions of resources: defaults, checks, update masks."""

from __future__ import annotations

from math import inf

import pytest

from cdc_reactor.local import protos
from cdc_reactor.local.definitions import new_subscription, new_topic, updated
from cdc_reactor.local.options import DeadLetterPolicy, RetryPolicy, SubscriptionOptions
from cdc_reactor.local.refusals import Code, Refused

NAME, TOPIC = "projects/p/subscriptions/orders", "projects/p/topics/orders"


def subscription(**fields):
    return protos.Subscription(**{"name": NAME, "topic": TOPIC, **fields})


def test_a_bare_subscription_has_the_services_defaults():
    _, options = new_subscription(subscription())

    assert options == SubscriptionOptions(
        ack_deadline=10.0, retention=604_800.0, expires_after=2_678_400.0, retains_acked=False, is_ordered=False
    )


def test_policies_are_completed():
    definition, options = new_subscription(
        subscription(
            retry_policy={},
            dead_letter_policy={"dead_letter_topic": TOPIC},
            expiration_policy={},
            enable_message_ordering=True,
            enable_exactly_once_delivery=True,
        )
    )

    assert options == SubscriptionOptions(
        ack_deadline=10.0,
        retention=604_800.0,
        expires_after=inf,
        is_ordered=True,
        is_exactly_once=True,
        retry=RetryPolicy(10.0, 600.0),
        dead_letter=DeadLetterPolicy(TOPIC, 5),
    )
    assert definition.retry_policy.minimum_backoff.seconds == 10


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "orders"},
        {"name": "projects/p/subscriptions/go"},
        {"name": "projects/p/subscriptions/googol"},
        {"name": "projects/p/subscriptions/1st"},
        {"name": "projects/p/subscriptions/" + "x" * 256},
        {"name": TOPIC},
        {"topic": NAME},
        {"ack_deadline_seconds": 9},
        {"ack_deadline_seconds": 601},
        {"message_retention_duration": {"seconds": 599}},
        {"message_retention_duration": {"seconds": 31 * 86_400 + 1}},
        {"expiration_policy": {"ttl": {"seconds": 86_399}}},
        {"retry_policy": {"minimum_backoff": {"seconds": 20}, "maximum_backoff": {"seconds": 10}}},
        {"retry_policy": {"maximum_backoff": {"seconds": 601}}},
        {"dead_letter_policy": {"dead_letter_topic": TOPIC, "max_delivery_attempts": 4}},
        {"dead_letter_policy": {"dead_letter_topic": TOPIC, "max_delivery_attempts": 101}},
        {"dead_letter_policy": {"dead_letter_topic": "dead"}},
        {"filter": "bogus"},
        {"labels": {"x" * 64: "y"}},
        {"labels": {f"l{number}": "" for number in range(65)}},
    ],
)
def test_what_the_service_refuses_is_refused(fields):
    with pytest.raises(Refused) as refused:
        new_subscription(subscription(**fields))

    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_mask_replaces_whole_fields_and_unsets_what_is_absent():
    current, _ = new_subscription(
        subscription(labels={"a": "1", "b": "2"}, dead_letter_policy={"dead_letter_topic": TOPIC})
    )
    wanted = protos.Subscription(labels={"c": "3"}, ack_deadline_seconds=60)

    result = updated(current, wanted, ["labels", "dead_letter_policy"])

    expected = subscription(labels={"c": "3"})
    expected.MergeFrom(protos.Subscription(message_retention_duration=current.message_retention_duration))
    expected.ack_deadline_seconds = 10
    expected.expiration_policy.ttl.seconds = 2_678_400
    expected.push_config.SetInParent()
    assert result == expected
    assert dict(current.labels) == {"a": "1", "b": "2"}


def test_a_mask_may_name_a_field_within_a_field():
    current, _ = new_subscription(subscription(retry_policy={}))
    wanted = protos.Subscription(retry_policy={"minimum_backoff": {"seconds": 5}})

    result = updated(current, wanted, ["retry_policy.minimum_backoff"])

    assert (result.retry_policy.minimum_backoff.seconds, result.retry_policy.maximum_backoff.seconds) == (5, 600)


@pytest.mark.parametrize(
    "paths", [[], ["nothing"], ["labels", "nothing"], ["name"], ["topic"], ["filter"], ["labels.a"], ["state"]]
)
def test_a_mask_that_names_what_is_not_there_or_cannot_change_is_refused(paths):
    current, _ = new_subscription(subscription())

    with pytest.raises(Refused, match="update_mask") as refused:
        updated(current, protos.Subscription(), paths)

    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_topics_retention_is_within_ten_minutes_and_a_month():
    assert new_topic(protos.Topic(name=TOPIC, message_retention_duration={"seconds": 600}))[1].retention == 600.0
    with pytest.raises(Refused, match="message_retention_duration"):
        new_topic(protos.Topic(name=TOPIC, message_retention_duration={"seconds": 599}))
