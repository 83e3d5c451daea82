"""Filters: https://cloud.google.com/pubsub/docs/subscription-message-filter."""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import PubsubMessage

MESSAGES = {
    "com": {"domain": "com"},
    "org": {"domain": "org"},
    "company": {"domain": "company", "lang": "en"},
    "lang": {"domain": "net", "iana.org/language_tag": "en"},
    "quoted": {"domain": "x", 'say "hi"': 'back\\slash "q"'},
    "unicode": {"domain": "x", "みんな": "да"},
    "upper": {"domain": "COM"},
}
EVERY = set(MESSAGES)
FILTERS = {
    "key": ("attributes:lang", {"company"}),
    "quoted_key": ('attributes:"iana.org/language_tag"', {"lang"}),
    "equal": ('attributes.domain = "com"', {"com"}),
    "equal_without_spaces": ('attributes.domain="com"', {"com"}),
    "not_equal": ('attributes.domain != "com"', EVERY - {"com"}),
    "prefix": ('hasPrefix(attributes.domain, "com")', {"com", "company"}),
    "prefix_of_a_quoted_key": ('hasPrefix(attributes."iana.org/language_tag", "e")', {"lang"}),
    "not": ("NOT attributes:lang", EVERY - {"company"}),
    "minus": ("-attributes:lang", EVERY - {"company"}),
    "not_prefix": ('NOT hasPrefix(attributes.domain, "com")', EVERY - {"com", "company"}),
    "and": ('attributes:lang AND attributes.domain = "company"', {"company"}),
    "and_of_nothing": ('attributes:lang AND attributes.domain = "com"', set()),
    "or": ('attributes.domain = "com" OR attributes.domain = "org"', {"com", "org"}),
    "three_or": (
        'attributes.domain = "com" OR attributes.domain = "org" OR attributes:lang',
        {"com", "org", "company"},
    ),
    "parentheses": (
        'hasPrefix(attributes.domain, "c") AND (attributes.domain = "com" OR attributes:lang)',
        {"com", "company"},
    ),
    "not_of_parentheses": ('NOT (attributes.domain = "com" OR attributes.domain = "org")', EVERY - {"com", "org"}),
    "not_binds_first": (
        'NOT attributes.domain = "com" AND hasPrefix(attributes.domain, "com")',
        {"company"},
    ),
    "unicode_key": ('attributes:"\\u307F\\u3093\\u306A"', {"unicode"}),
    "unicode_value": ('attributes."みんな" = "да"', {"unicode"}),
    "escapes": ('attributes."say \\"hi\\"" = "back\\\\slash \\"q\\""', {"quoted"}),
}
NO_FILTERS = {
    "a_word": "domain",
    "data": 'data = "x"',
    "single_quotes": "attributes.domain = 'com'",
    "no_quotes": "attributes.domain = com",
    "other_function": 'hasSuffix(attributes.domain, "com")',
    "no_value": "attributes.domain =",
    "comparison": 'attributes.domain > "com"',
    "and_with_or": "attributes:a AND attributes:b OR attributes:c",
    "small_and": "attributes:a and attributes:b",
    "open_parenthesis": "(attributes:a",
    "nothing_after_not": "NOT",
    "two_without_operator": "attributes:a attributes:b",
    "open_string": 'attributes.domain = "com',
    "257_bytes": 'attributes.k = "' + "v" * 240 + '"',
}


@pytest.mark.parametrize(("text", "expected"), FILTERS.values(), ids=FILTERS)
def test_only_what_matches_is_delivered(pubsub, text, expected):
    topic, subscription = pubsub.pair(filter=text)

    for name, attributes in MESSAGES.items():
        pubsub.publish(topic, PubsubMessage(data=name.encode(), attributes=attributes))

    if expected:
        assert set(pubsub.texts(pubsub.pull(subscription, len(expected)))) == expected
    pubsub.gives_nothing(subscription)


@pytest.mark.parametrize("text", NO_FILTERS.values(), ids=NO_FILTERS)
def test_what_is_no_filter_is_refused(pubsub, text):
    topic = pubsub.topic()

    with pubsub.refuses("INVALID_ARGUMENT"):
        pubsub.subscription(topic, filter=text)


def test_a_filter_of_256_bytes_is_taken_and_given_back(pubsub):
    text = 'attributes.k = "' + "v" * 239 + '"'
    assert len(text) == 256

    _, subscription = pubsub.pair(filter=text)

    assert pubsub.subscriber.get_subscription({"subscription": subscription}).filter == text


def test_what_does_not_match_is_acked_and_no_seek_brings_it(pubsub):
    topic, subscription = pubsub.pair(filter="attributes:k", retain_acked_messages=True)
    before = pubsub.instant()
    pubsub.publish(topic, "no", PubsubMessage(data=b"yes", attributes={"k": "v"}))
    pubsub.ack(subscription, *pubsub.pull(subscription, 1))

    pubsub.subscriber.seek({"subscription": subscription, "time": before})

    assert pubsub.texts(pubsub.pull(subscription, 1)) == ["yes"]
    pubsub.gives_nothing(subscription)


def test_a_stream_gives_only_what_matches(pubsub):
    topic, subscription = pubsub.pair(filter="attributes:k", enable_message_ordering=True)
    stream = pubsub.stream(subscription)

    for n in range(6):
        pubsub.publish(
            topic, PubsubMessage(data=f"a{n}".encode(), ordering_key="a", attributes={"k": "v"} if n % 2 else {})
        )

    assert pubsub.texts(stream.receive(3)) == ["a1", "a3", "a5"]
    stream.stays_quiet()
