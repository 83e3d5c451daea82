"""Topics: their names, what is echoed, update masks, lists."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.pubsub_v1.types import Topic

BAD_IDS = {
    "two letters": "ab",
    "a digit first": "1abc",
    "goog first": "google-changes",
    "a sign that is not allowed": "a!bc",
    "256 letters": "a" * 256,
}


def listed(pager):
    """Names, over all pages."""
    return [getattr(one, "name", one) for one in pager]


def test_a_topic_is_given_back_as_it_was_made(pubsub):
    name = pubsub.name("topics")
    fields = {"labels": {"team": "forum"}, "message_retention_duration": timedelta(minutes=10)}

    made = pubsub.publisher.create_topic({"name": name, **fields})

    found = pubsub.publisher.get_topic({"topic": name})
    for topic in (made, found):
        assert (topic.name, dict(topic.labels), topic.message_retention_duration) == (name, *fields.values())


def test_a_name_is_taken_once(pubsub):
    topic = pubsub.topic()

    with pubsub.refuses("ALREADY_EXISTS"):
        pubsub.publisher.create_topic({"name": topic})


@pytest.mark.parametrize("resource_id", BAD_IDS.values(), ids=[key.replace(" ", "_") for key in BAD_IDS])
def test_a_name_that_is_none_is_refused(pubsub, resource_id):
    """https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names."""
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publisher.create_topic({"name": f"{pubsub.project}/topics/{resource_id}"})


def test_a_name_of_another_kind_is_refused(pubsub):
    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publisher.create_topic({"name": f"{pubsub.project}/subscriptions/changes"})


def test_each_sign_that_a_name_may_have_is_taken(pubsub):
    name = pubsub.name("topics") + "_-.~+%Z9"

    assert pubsub.publisher.create_topic({"name": name}).name == name

    pubsub.publisher.delete_topic({"topic": name})


@pytest.mark.parametrize("call", ["get_topic", "delete_topic", "list_topic_subscriptions", "list_topic_snapshots"])
def test_a_topic_that_is_not_there_is_not_found(pubsub, call):
    with pubsub.refuses("NOT_FOUND"):
        getattr(pubsub.publisher, call)({"topic": pubsub.name("topics")})


def test_a_deleted_topic_is_not_found(pubsub):
    topic = pubsub.topic()

    pubsub.publisher.delete_topic({"topic": topic})

    with pubsub.refuses("NOT_FOUND"):
        pubsub.publisher.get_topic({"topic": topic})


def test_a_list_comes_in_pages_that_miss_and_repeat_nothing(pubsub):
    topics = [pubsub.topic() for _ in range(5)]

    first = pubsub.publisher.list_topics({"project": pubsub.project, "page_size": 2})
    names = listed(pubsub.publisher.list_topics({"project": pubsub.project, "page_size": 2}))

    assert len(first.topics) <= 2
    assert first.next_page_token
    assert sorted(name for name in names if name in topics) == sorted(topics)
    assert len(set(names)) == len(names)


def test_a_topic_lists_its_subscriptions(pubsub):
    topic, other = pubsub.topic(), pubsub.topic()
    subscriptions = [pubsub.subscription(topic) for _ in range(3)]
    pubsub.subscription(other)

    names = listed(pubsub.publisher.list_topic_subscriptions({"topic": topic, "page_size": 1}))

    assert sorted(names) == sorted(subscriptions)


def test_a_topic_lists_its_snapshots(pubsub):
    topic, subscription = pubsub.pair()
    snapshot = pubsub.name("snapshots")
    pubsub.subscriber.create_snapshot({"name": snapshot, "subscription": subscription})

    assert listed(pubsub.publisher.list_topic_snapshots({"topic": topic})) == [snapshot]


@pytest.mark.parametrize("seconds", [599, 31 * 86_400 + 1])
def test_a_topic_keeps_messages_for_ten_minutes_to_31_days(pubsub, seconds):
    name = pubsub.name("topics")

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publisher.create_topic({"name": name, "message_retention_duration": timedelta(seconds=seconds)})


def test_an_update_replaces_the_whole_field_that_it_names(pubsub):
    topic = pubsub.topic(labels={"a": "1", "b": "2"}, message_retention_duration=timedelta(hours=1))

    pubsub.publisher.update_topic({"topic": Topic(name=topic, labels={"c": "3"}), "update_mask": {"paths": ["labels"]}})

    found = pubsub.publisher.get_topic({"topic": topic})
    assert (dict(found.labels), found.message_retention_duration) == ({"c": "3"}, timedelta(hours=1))


def test_an_update_unsets_the_field_that_it_names_and_does_not_give(pubsub):
    topic = pubsub.topic(labels={"a": "1"}, message_retention_duration=timedelta(hours=1))

    paths = ["message_retention_duration"]
    updated = pubsub.publisher.update_topic({"topic": Topic(name=topic), "update_mask": {"paths": paths}})

    assert ("message_retention_duration" in updated, dict(updated.labels)) == (False, {"a": "1"})


@pytest.mark.parametrize(
    "paths", [[], ["colour"], ["name"], ["labels", "colour"]], ids=["none", "unknown", "name", "both"]
)
def test_an_update_without_a_field_that_may_change_is_refused(pubsub, paths):
    topic = pubsub.topic(labels={"a": "1"})

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.publisher.update_topic({"topic": Topic(name=topic, labels={"b": "2"}), "update_mask": {"paths": paths}})

    assert dict(pubsub.publisher.get_topic({"topic": topic}).labels) == {"a": "1"}


def test_an_update_of_a_topic_that_is_not_there_is_not_found(pubsub):
    topic = Topic(name=pubsub.name("topics"), labels={"a": "1"})

    with pubsub.refuses("NOT_FOUND"):
        pubsub.publisher.update_topic({"topic": topic, "update_mask": {"paths": ["labels"]}})


def test_a_subscription_of_a_deleted_topic_says_so_and_keeps_its_messages(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publish(topic, "a", "b")

    pubsub.publisher.delete_topic({"topic": topic})

    assert pubsub.subscriber.get_subscription({"subscription": subscription}).topic == "_deleted-topic_"
    assert sorted(pubsub.texts(pubsub.pull(subscription, 2))) == ["a", "b"]


def test_a_new_topic_of_the_same_name_is_another_topic(pubsub):
    topic, subscription = pubsub.pair()
    pubsub.publisher.delete_topic({"topic": topic})

    pubsub.publisher.create_topic({"name": topic})
    pubsub.publish(topic, "for nobody")

    assert pubsub.subscriber.get_subscription({"subscription": subscription}).topic == "_deleted-topic_"
    assert listed(pubsub.publisher.list_topic_subscriptions({"topic": topic})) == []
    pubsub.gives_nothing(subscription)


def test_a_topic_that_was_deleted_takes_no_subscription(pubsub):
    topic = pubsub.topic()
    pubsub.publisher.delete_topic({"topic": topic})

    with pubsub.refuses("NOT_FOUND"):
        pubsub.subscription(topic)
