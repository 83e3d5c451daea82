"""Dead letters: the message as it was, and why it lies there, within the broker's limits."""

from datetime import UTC, datetime

import orjson

from cdc_reactor.dead_letters import Circumstances, fingerprint, letter, without_reasons
from cdc_reactor.decoder import Decoder
from cdc_reactor.errors import DecodeError, RemoteFailure
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict

CHANGE = orjson.dumps(
    {
        "before": None,
        "after": {"id": 7},
        "source": {
            "connector": "postgresql", "name": "forum", "ts_ms": 1, "db": "forum", "schema": "public", "table": "users",
            "lsn": 0x16B374D848,
        },
        "op": "c",
        "ts_ms": 1,
    }
)  # fmt: skip
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
CIRCUMSTANCES = Circumstances("cdc", AT.timestamp(), AT.timestamp() + 2.5)


def settlement(message: Message, error: BaseException | None = None, reason: str = "why", handler: str = "announce"):
    return Settlement(Delivery(message, "ack-id", 3), Verdict.DEAD_LETTER, reason, error, handler, 5)


def failure() -> ValueError:
    try:
        int("ada")
    except ValueError as error:
        return error
    raise AssertionError


def test_a_letter_is_the_message_with_its_key_and_all_that_is_known_of_the_failure():
    message = Message(CHANGE, {"origin": "sink"}, "key-7", "m1", AT)
    error = failure()

    written = letter(settlement(message, error), Decoder(), CIRCUMSTANCES)

    assert written == Message(
        CHANGE,
        {
            "origin": "sink",
            "cdc_error_class": "ValueError",
            "cdc_error": "why",
            "cdc_fingerprint": fingerprint(settlement(message, error), "public.users"),
            "cdc_handler": "announce",
            "cdc_table": "public.users",
            "cdc_lsn": "16/B374D848",
            "cdc_attempts": "5",
            "cdc_first_failure": "2026-11-01T12:00:00.000+00:00",
            "cdc_last_failure": "2026-11-01T12:00:02.500+00:00",
            "cdc_subscription": "cdc",
            "cdc_message_id": "m1",
            "cdc_publish_time": "2026-11-01T12:00:00+00:00",
        },
        "key-7",
    )


def test_what_is_given_up_a_second_time_keeps_what_it_was_known_by():
    first = letter(settlement(Message(CHANGE, {}, "k", "m1", AT)), Decoder(), CIRCUMSTANCES)
    again = Message(first.data, first.attributes, first.ordering_key, "m2")

    second = letter(settlement(again, reason="again"), Decoder(), Circumstances("cdc", 2e9, 2e9))

    kept = ("cdc_message_id", "cdc_publish_time", "cdc_first_failure")
    assert [second.attributes[name] for name in kept] == [first.attributes[name] for name in kept]
    assert (second.attributes["cdc_error"], second.attributes["cdc_last_failure"][:4]) == ("again", "2033")


def test_bytes_that_cannot_be_read_are_kept_as_they_are_and_have_no_table():
    message = Message(b"\xff\x00 no JSON", message_id="m1")

    written = letter(settlement(message, DecodeError("bad"), handler=""), Decoder(), CIRCUMSTANCES)

    assert written.data == message.data
    assert "cdc_table" not in written.attributes
    assert "cdc_handler" not in written.attributes
    assert written.attributes["cdc_error_class"] == "DecodeError"


def test_an_error_of_another_process_keeps_its_class():
    written = letter(settlement(Message(CHANGE), RemoteFailure("KeyError", "x")), Decoder(), CIRCUMSTANCES)

    assert written.attributes["cdc_error_class"] == "KeyError"


def test_a_long_reason_is_cut_to_the_limit_of_an_attribute_between_characters():
    written = letter(settlement(Message(CHANGE), reason="ä" * 1_000), Decoder(), CIRCUMSTANCES)

    value = written.attributes["cdc_error"]
    assert len(value.encode()) <= 1_024
    assert value == "ä" * 510 + "…"


def test_text_that_is_no_unicode_is_still_written():
    written = letter(settlement(Message(CHANGE), reason="half \ud800 of it"), Decoder(), CIRCUMSTANCES)

    assert written.attributes["cdc_error"] == "half ? of it"


def test_the_attributes_of_the_sender_stay_and_ours_fill_what_is_left_of_a_hundred():
    theirs = {f"a{n}": "x" for n in range(98)}

    written = letter(settlement(Message(CHANGE, theirs), failure()), Decoder(), CIRCUMSTANCES)

    assert written.attributes == theirs | {"cdc_error_class": "ValueError", "cdc_error": "why"}


def test_a_letter_that_failed_again_tells_the_last_failure():
    earlier = {"cdc_error": "first time", "cdc_handler": "other"}

    written = letter(settlement(Message(CHANGE, earlier), failure()), Decoder(), CIRCUMSTANCES)

    assert (written.attributes["cdc_error"], written.attributes["cdc_handler"]) == ("why", "announce")


def test_a_message_without_room_keeps_the_class_of_the_error_only():
    written = letter(settlement(Message(CHANGE, {"origin": "sink"}), failure()), Decoder(), CIRCUMSTANCES)

    assert without_reasons(written).attributes == {"origin": "sink", "cdc_error_class": "ValueError"}


def test_one_cause_has_one_fingerprint_and_another_place_has_another():
    message = Message(CHANGE)

    def elsewhere() -> ValueError:
        try:
            int("ada")
        except ValueError as error:
            return error
        raise AssertionError

    same = {fingerprint(settlement(message, failure(), reason=f"why {n}"), "public.users") for n in range(3)}
    assert len(same) == 1
    assert fingerprint(settlement(message, elsewhere()), "public.users") not in same
    assert fingerprint(settlement(message, failure()), "public.posts") not in same
