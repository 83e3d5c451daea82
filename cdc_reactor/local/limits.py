"""The limits of the service that the broker holds publishers and subscriptions to. Pure.

Sources: https://cloud.google.com/pubsub/quotas#resource_limits and the comments of google/pubsub/v1/pubsub.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdc_reactor.local.refusals import invalid

MAX_PUBLISH_MESSAGES = 1_000
MAX_PUBLISH_BYTES = 10_000_000
MAX_ACK_REQUEST_BYTES = 524_288
MAX_PULL_MESSAGES = 1_000
MAX_ORDERING_KEY_BYTES = 1_024
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1_024
MAX_LABELS = 64
MAX_LABEL_LENGTH = 63

DAY = 86_400.0
ACK_DEADLINE = (10, 600)
RETENTION = (600.0, 31 * DAY)
BACKOFF = (0.0, 600.0)
DELIVERY_ATTEMPTS = (5, 100)
MIN_EXPIRATION_TTL = DAY

DEFAULT_ACK_DEADLINE = 10
DEFAULT_RETENTION = 7 * DAY
DEFAULT_EXPIRATION_TTL = 31 * DAY
DEFAULT_BACKOFF = (10.0, 600.0)
DEFAULT_DELIVERY_ATTEMPTS = 5

SNAPSHOT_LIFE = 7 * DAY
MIN_SNAPSHOT_LIFE = 3_600.0


def check_publish(count: int, size_bytes: int) -> None:
    """Check a publish request as a whole; raises INVALID_ARGUMENT."""
    if not count:
        raise invalid("The value for message_count is too small. You passed 0 in the request, but the minimum is 1.")
    if count > MAX_PUBLISH_MESSAGES:
        raise invalid(
            f"The value for message_count is too large. You passed {count} in the request, but the maximum value is "
            f"{MAX_PUBLISH_MESSAGES}."
        )
    if size_bytes > MAX_PUBLISH_BYTES:
        raise invalid(
            f"The value for request_size is too large. You passed {size_bytes} in the request, but the maximum value "
            f"is {MAX_PUBLISH_BYTES}."
        )


def check_ack_request(size_bytes: int) -> None:
    """Check the size of an Acknowledge, ModifyAckDeadline or StreamingPull request; raises INVALID_ARGUMENT."""
    if size_bytes > MAX_ACK_REQUEST_BYTES:
        raise invalid(
            f"Request size exceeds the limit: {MAX_ACK_REQUEST_BYTES} bytes; this one has {size_bytes}. Send fewer ack "
            "ids at once."
        )


def check_ordering_keys(keys: Iterable[str]) -> None:
    """Check the ordering keys of one publish request, which must be one and the same; raises INVALID_ARGUMENT."""
    different = set(keys)
    if len(different) > 1:
        raise invalid(
            "In a single publish request, all messages must have no ordering key or they must all have the same "
            "ordering key."
        )
    for key in different:
        size_bytes = len(key.encode())
        if size_bytes > MAX_ORDERING_KEY_BYTES:
            raise invalid(f"The ordering key has {size_bytes} bytes; the maximum is {MAX_ORDERING_KEY_BYTES}.")


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Check a message's attributes; raises INVALID_ARGUMENT."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise invalid(f"A message has {len(attributes)} attributes; the maximum is {MAX_ATTRIBUTES}.")
    for key, value in attributes.items():
        if not key:
            raise invalid("An attribute's key is empty.")
        if key.startswith("goog") and not key.startswith("googclient_"):
            raise invalid(f"The attribute {key!r} begins with goog, which is the service's own.")
        if len(key.encode()) > MAX_ATTRIBUTE_KEY_BYTES:
            raise invalid(f"The attribute {key[:40]!r}… has a key of more than {MAX_ATTRIBUTE_KEY_BYTES} bytes.")
        if len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            raise invalid(f"The attribute {key!r} has a value of more than {MAX_ATTRIBUTE_VALUE_BYTES} bytes.")


def check_labels(labels: Mapping[str, str]) -> None:
    """Check a resource's labels; raises INVALID_ARGUMENT."""
    if len(labels) > MAX_LABELS:
        raise invalid(f"There are {len(labels)} labels; the maximum is {MAX_LABELS}.")
    for key, value in labels.items():
        if not key or len(key) > MAX_LABEL_LENGTH or len(value) > MAX_LABEL_LENGTH:
            raise invalid(f"The label {key[:80]!r} has a key or value of more than {MAX_LABEL_LENGTH} characters.")


def check_ack_deadline(seconds: int) -> None:
    """Check the ack deadline of a subscription or a stream; raises INVALID_ARGUMENT."""
    low, high = ACK_DEADLINE
    if not low <= seconds <= high:
        raise invalid(f"Invalid ack deadline given (ack_deadline={seconds}): it must be {low} to {high} seconds.")


def check_modified_deadline(seconds: int) -> None:
    """Check the seconds of a ModifyAckDeadline, where 0 gives the message back; raises INVALID_ARGUMENT."""
    high = ACK_DEADLINE[1]
    if not 0 <= seconds <= high:
        raise invalid(f"Invalid ack deadline given (ack_deadline={seconds}): it must be 0 to {high} seconds.")


def check_range(what: str, seconds: float, allowed: tuple[float, float]) -> None:
    """Check a duration; raises INVALID_ARGUMENT."""
    low, high = allowed
    if not low <= seconds <= high:
        raise invalid(f"Invalid {what}: {seconds:g} seconds are not within {low:g} and {high:g}.")
