"""The filter language, by what it says of messages' attributes."""

from __future__ import annotations

import pytest

from cdc_reactor.local.filters import parse
from cdc_reactor.local.refusals import Code, Refused

COM, ORG, BARE = {"domain": "com"}, {"domain": "org", "iana.org/lang": "en"}, {"other": "1"}

CASES = {
    "attributes:domain": [True, True, False],
    'attributes.domain = "com"': [True, False, False],
    'attributes.domain != "com"': [False, True, True],
    'hasPrefix(attributes.domain, "c")': [True, False, False],
    'attributes:"iana.org/lang"': [False, True, False],
    'attributes."iana.org/lang"="en"': [False, True, False],
    "NOT attributes:domain": [False, False, True],
    "-attributes:domain": [False, False, True],
    'attributes.domain = "com" OR attributes.domain = "org"': [True, True, False],
    'attributes:domain AND NOT attributes.domain = "com"': [False, True, False],
    'attributes:other OR (attributes:domain AND hasPrefix(attributes.domain,"o"))': [False, True, True],
    "NOT (attributes:domain OR attributes:other)": [False, False, False],
    'attributes.domain = "\\u0063\\x6f\\155"': [True, False, False],
}


@pytest.mark.parametrize(("text", "expected"), CASES.items())
def test_a_filter_says_which_messages_pass(text, expected):
    predicate = parse(text)

    assert predicate is not None
    assert [predicate(attributes) for attributes in (COM, ORG, BARE)] == expected


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_filter_is_none(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "bogus",
        "attributes",
        "attributes:",
        "attributes.domain",
        "attributes.domain = com",
        'attributes.domain < "com"',
        "attributes:a AND attributes:b OR attributes:c",
        "attributes:a AND",
        "AND attributes:a",
        "(attributes:a",
        "attributes:a)",
        'hasSuffix(attributes.a, "b")',
        'hasPrefix(attributes.a "b")',
        'attributes.a = "open',
        "NOT",
        "NOT NOT attributes:a",
        "attributes:a attributes:b",
        f'attributes.a = "{"x" * 256}"',
    ],
)
def test_what_is_no_filter_is_refused_in_words(text):
    with pytest.raises(Refused) as refused:
        parse(text)

    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "ilter" in str(refused.value)
