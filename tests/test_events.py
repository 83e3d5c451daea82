"""Events: bound to a topic, and written as JSON without loss."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pydantic
import pytest

from cdc_reactor import DefinitionError, Event
from cdc_reactor.events import Publication, encode


class UserRenamed(Event, topic="user.renamed.v1"):
    user_id: UUID
    new: str | None = None


def declare(topic: str) -> type[Event]:
    class Declared(Event, topic=topic):
        pass

    return Declared


class TestATopic:
    def test_belongs_to_the_class(self):
        class Again(UserRenamed):
            pass

        assert (Event.topic, UserRenamed.topic, Again.topic) == ("", "user.renamed.v1", "user.renamed.v1")
        assert "topic" not in UserRenamed.model_fields

    @pytest.mark.parametrize("topic", ["abc", "user.renamed.v1", "A-b_c~d+e%2F", "a" * 255])
    def test_of_every_legal_name_is_taken(self, topic):
        assert declare(topic).topic == topic

    @pytest.mark.parametrize("topic", ["", "ab", "1abc", "a b c", "goog.user", "nämlich", "a" * 256, "a/b/c", "abc\n"])
    def test_of_an_illegal_name_is_refused(self, topic):
        with pytest.raises(
            DefinitionError, match=r"Declared: topic=.* is no legal Pub/Sub name: a letter, then 2 to 254"
        ):
            declare(topic)


class TestAnEvent:
    def test_is_a_value(self):
        ada = UUID(int=1)
        event = UserRenamed(user_id=ada)

        assert event == UserRenamed(user_id=ada, new=None) != UserRenamed(user_id=ada, new="ada")
        assert Publication(event) == Publication(event, "")
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            event.new = "ada"  # type: ignore[misc]  # the point

    def test_is_checked_when_it_is_made(self):
        with pytest.raises(pydantic.ValidationError, match="user_id"):
            UserRenamed(user_id="ada")

    def test_passes_over_what_a_later_version_added(self):
        assert UserRenamed.model_validate({"user_id": UUID(int=1), "later": 1}) == UserRenamed(user_id=UUID(int=1))


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1, 1),
        (2**70, 2**70),
        (1.5, 1.5),
        (float("nan"), None),
        ("ünï", "ünï"),
        (None, None),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (date(2026, 11, 23), "2026-11-23"),
        (datetime(2026, 11, 23, 12, tzinfo=UTC), "2026-11-23T12:00:00Z"),
        (b"\xff\x00", "_wA="),
        (Colour.RED, "red"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}),
        (UserRenamed(user_id=UUID(int=1)), {"user_id": "00000000-0000-0000-0000-000000000001", "new": None}),
    ],
    ids=str,
)
def test_an_event_is_written_as_json(value, written):
    class Told(Event, topic="told.v1"):
        value: Any

    assert json.loads(encode(Told(value=value))) == {"value": written}
