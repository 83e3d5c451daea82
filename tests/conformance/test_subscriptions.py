"""Subscriptions: defaults, ranges, update masks, what never changes, detaching."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.pubsub_v1.types import Subscription

DAY = 86_400


@pytest.fixture
def get(pubsub):
    return lambda subscription: pubsub.subscriber.get_subscription({"subscription": subscription})


@pytest.fixture
def update(pubsub):
    def update(name, *paths, **fields):
        subscription = Subscription(name=name, **fields)
        request = {"subscription": subscription, "update_mask": {"paths": list(paths or fields)}}
        return pubsub.subscriber.update_subscription(request)

    return update


def test_what_is_not_given_gets_the_services_defaults(pubsub, get):
    topic, subscription = pubsub.pair()

    found = get(subscription)

    assert (found.topic, found.ack_deadline_seconds, found.retain_acked_messages) == (topic, 10, False)
    assert (found.message_retention_duration, found.expiration_policy.ttl) == (timedelta(days=7), timedelta(days=31))
    assert (found.enable_message_ordering, found.enable_exactly_once_delivery, found.detached) == (False, False, False)
    assert ("dead_letter_policy" in found, "retry_policy" in found, found.filter) == (False, False, "")
    assert found.state == Subscription.State.ACTIVE


def test_a_subscription_is_given_back_as_it_was_made(pubsub, get):
    fields = {
        "ack_deadline_seconds": 600,
        "retain_acked_messages": True,
        "message_retention_duration": timedelta(minutes=10),
        "labels": {"team": "forum"},
        "enable_message_ordering": True,
        "expiration_policy": {"ttl": timedelta(days=2)},
        "filter": 'attributes.table = "public.user"',
        "retry_policy": {"minimum_backoff": timedelta(seconds=1), "maximum_backoff": timedelta(seconds=2)},
        "enable_exactly_once_delivery": True,
    }

    _, subscription = pubsub.pair(**fields)

    found, expected = get(subscription), Subscription(**fields)
    assert {name: getattr(found, name) for name in fields} == {name: getattr(expected, name) for name in fields}


def test_a_subscription_that_never_expires_says_so(pubsub, get):
    _, subscription = pubsub.pair(expiration_policy={})

    found = get(subscription)

    assert ("expiration_policy" in found, "ttl" in found.expiration_policy) == (True, False)


def test_a_subscription_tells_how_long_its_topic_retains_messages(pubsub, get):
    topic = pubsub.topic(message_retention_duration=timedelta(hours=1))

    subscription = pubsub.subscription(topic)

    assert get(subscription).topic_message_retention_duration == timedelta(hours=1)


def test_a_name_is_taken_once(pubsub):
    topic, subscription = pubsub.pair()

    with pubsub.refuses("ALREADY_EXISTS"):
        pubsub.subscriber.create_subscription({"name": subscription, "topic": topic})


def test_a_subscription_of_a_topic_that_is_not_there_is_not_found(pubsub):
    with pubsub.refuses("NOT_FOUND"):
        pubsub.subscription(pubsub.name("topics"))


@pytest.mark.parametrize(
    "call", ["get_subscription", "delete_subscription", "pull", "acknowledge", "modify_ack_deadline"]
)
def test_a_subscription_that_is_not_there_is_not_found(pubsub, call):
    more: dict[str, dict[str, object]] = {
        "pull": {"max_messages": 1},
        "acknowledge": {"ack_ids": ["x"]},
        "modify_ack_deadline": {"ack_ids": ["x"], "ack_deadline_seconds": 10},
    }

    with pubsub.refuses("NOT_FOUND"):
        getattr(pubsub.subscriber, call)({"subscription": pubsub.name("subscriptions"), **more.get(call, {})})


def test_a_deleted_subscription_is_not_found_and_starts_empty_when_it_is_made_again(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "gone")
    pubsub.subscriber.delete_subscription({"subscription": subscription})
    with pubsub.refuses("NOT_FOUND"):
        pubsub.pull(subscription, 1)

    pubsub.subscriber.create_subscription({"name": subscription, "topic": topic})

    pubsub.gives_nothing(subscription)


def test_a_project_lists_its_subscriptions_in_pages(pubsub):
    topic = pubsub.topic()
    subscriptions = [pubsub.subscription(topic) for _ in range(5)]

    pages = pubsub.subscriber.list_subscriptions({"project": pubsub.project, "page_size": 2})

    assert len(pages.subscriptions) <= 2
    assert sorted(one.name for one in pages if one.name in subscriptions) == sorted(subscriptions)


OUT_OF_RANGE = {
    "ack_deadline_of_9_s": {"ack_deadline_seconds": 9},
    "ack_deadline_of_601_s": {"ack_deadline_seconds": 601},
    "retention_under_10_minutes": {"message_retention_duration": timedelta(seconds=599)},
    "retention_over_31_days": {"message_retention_duration": timedelta(seconds=31 * DAY + 1)},
    "expiry_within_a_day": {"expiration_policy": {"ttl": timedelta(seconds=DAY - 1)}},
    "backoff_over_600_s": {"retry_policy": {"maximum_backoff": timedelta(seconds=601)}},
    "backoff_bounds_reversed": {
        "retry_policy": {"minimum_backoff": timedelta(seconds=20), "maximum_backoff": timedelta(seconds=10)}
    },
}


@pytest.mark.parametrize("fields", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_what_is_out_of_its_range_is_refused(pubsub, fields):
    topic = pubsub.topic()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.subscription(topic, **fields)


@pytest.mark.parametrize("attempts", [4, 101])
def test_dead_lettering_takes_5_to_100_attempts(pubsub, attempts):
    topic, policy = pubsub.topic(), {"dead_letter_topic": pubsub.topic(), "max_delivery_attempts": attempts}

    # Both are "400 Bad Request" over HTTP, and the emulator says the second.
    with pubsub.refuses("INVALID_ARGUMENT", "OUT_OF_RANGE"):
        pubsub.subscription(topic, dead_letter_policy=policy)


def test_dead_lettering_is_after_five_attempts_when_it_is_not_said(pubsub, get):
    _, subscription = pubsub.pair(dead_letter_policy={"dead_letter_topic": pubsub.topic()})

    assert get(subscription).dead_letter_policy.max_delivery_attempts == 5


def test_a_retry_policy_backs_off_from_10_to_600_seconds_when_it_is_not_said(pubsub, get):
    _, subscription = pubsub.pair(retry_policy={})

    policy = get(subscription).retry_policy

    assert (policy.minimum_backoff, policy.maximum_backoff) == (timedelta(seconds=10), timedelta(seconds=600))


def test_an_update_replaces_the_whole_fields_that_it_names(pubsub, get, update):
    _, subscription = pubsub.pair(labels={"a": "1", "b": "2"}, ack_deadline_seconds=20)

    updated = update(subscription, labels={"c": "3"}, retain_acked_messages=True)

    for found in (updated, get(subscription)):
        assert (dict(found.labels), found.retain_acked_messages) == ({"c": "3"}, True)
        assert found.ack_deadline_seconds == 20


def test_an_update_leaves_what_it_gives_and_does_not_name(pubsub, get, update):
    _, subscription = pubsub.pair(ack_deadline_seconds=20)

    update(subscription, "labels", labels={"a": "1"}, ack_deadline_seconds=30)

    found = get(subscription)
    assert (dict(found.labels), found.ack_deadline_seconds) == ({"a": "1"}, 20)


def test_an_update_unsets_what_it_names_and_does_not_give(pubsub, get, update):
    _, subscription = pubsub.pair(
        labels={"a": "1"},
        retry_policy={"minimum_backoff": timedelta(seconds=5)},
        dead_letter_policy={"dead_letter_topic": pubsub.topic()},
        message_retention_duration=timedelta(minutes=20),
    )

    update(subscription, "labels", "retry_policy", "dead_letter_policy", "message_retention_duration")

    found = get(subscription)
    assert (dict(found.labels), "retry_policy" in found, "dead_letter_policy" in found) == ({}, False, False)
    assert found.message_retention_duration == timedelta(days=7)


def test_an_update_without_a_mask_is_refused(pubsub):
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.subscriber.update_subscription(
            {"subscription": Subscription(name=subscription, ack_deadline_seconds=20)}
        )


@pytest.mark.parametrize("path", ["colour", "name", "topic", "filter", "enable_message_ordering", "ackDeadlineSeconds"])
def test_an_update_of_what_is_unknown_or_never_changes_is_refused(pubsub, get, update, path):
    topic, subscription = pubsub.pair(filter='attributes.k = "v"')

    with pubsub.refuses("INVALID_ARGUMENT"):
        update(subscription, path, topic=pubsub.topic(), filter="attributes:other", enable_message_ordering=True)

    found = get(subscription)
    assert (found.topic, found.filter, found.enable_message_ordering) == (topic, 'attributes.k = "v"', False)


def test_an_update_checks_ranges_too(pubsub, update):
    _, subscription = pubsub.pair()

    with pubsub.refuses("INVALID_ARGUMENT"):
        update(subscription, ack_deadline_seconds=601)


def test_an_update_of_a_subscription_that_is_not_there_is_not_found(pubsub, update):
    with pubsub.refuses("NOT_FOUND"):
        update(pubsub.name("subscriptions"), ack_deadline_seconds=20)


def test_a_pull_subscription_may_be_told_again_that_it_is_one(pubsub, get):
    topic, subscription = pubsub.pair()

    pubsub.subscriber.modify_push_config({"subscription": subscription, "push_config": {}})

    pubsub.publish(topic, "a")
    assert get(subscription).push_config.push_endpoint == ""
    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["a"]


def test_a_detached_subscription_gives_nothing_any_more(pubsub, get):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "dropped")

    pubsub.publisher.detach_subscription({"subscription": subscription})

    assert get(subscription).detached
    assert list(pubsub.publisher.list_topic_subscriptions({"topic": topic})) == []
    with pubsub.refuses("FAILED_PRECONDITION"):
        pubsub.pull(subscription, 1)


def test_detaching_ends_the_streams(pubsub):
    topic, subscription = pubsub.pair()
    stream = pubsub.stream(subscription)
    pubsub.publish(topic, "a")
    stream.receive(1)

    pubsub.publisher.detach_subscription({"subscription": subscription})

    assert stream.end() == "FAILED_PRECONDITION"


def test_detaching_what_is_not_there_is_not_found(pubsub):
    with pubsub.refuses("NOT_FOUND"):
        pubsub.publisher.detach_subscription({"subscription": pubsub.name("subscriptions")})


@pytest.mark.virtual_clock("a subscription expires after a day at the earliest")
def test_a_subscription_that_nobody_uses_expires(pubsub):
    retention = timedelta(minutes=10)
    _, subscription = pubsub.pair(expiration_policy={"ttl": timedelta(days=1)}, message_retention_duration=retention)
    _, kept = pubsub.pair(expiration_policy={})

    pubsub.pass_time(DAY + 60)

    pubsub.gives_nothing(kept)
    with pubsub.refuses("NOT_FOUND"):
        pubsub.subscriber.get_subscription({"subscription": subscription})
