"""What the API says of topics, subscriptions and snapshots: checks, defaults, update masks, and what is echoed.

Definitions are protobuf messages as the user wrote them, completed by defaults. They are never changed in place.
Defaults and limits: the comments of google/pubsub/v1/pubsub.proto. Push, BigQuery and Cloud Storage settings are kept
and echoed, and nothing is delivered by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from cdc_reactor.local import filters, limits, names, protos
from cdc_reactor.local.broker import Snapshot, Subscription, Topic
from cdc_reactor.local.names import Kind
from cdc_reactor.local.options import DeadLetterPolicy, RetryPolicy, SubscriptionOptions, TopicOptions
from cdc_reactor.local.refusals import invalid

_NANOS = 1_000_000_000

_IMMUTABLE = frozenset({"name", "topic", "filter", "enable_message_ordering", "tags"})
_OUTPUT_ONLY = frozenset(
    {"state", "detached", "topic_message_retention_duration", "satisfies_pzs", "analytics_hub_subscription_info"}
)


# ── topics ──


def new_topic(request: Any) -> tuple[Any, TopicOptions]:
    """Complete and check the definition of a topic; return it and its options."""
    names.check(Kind.TOPIC, request.name)
    definition = _copy(request)
    for field in ("tags", "satisfies_pzs", "state"):
        definition.ClearField(field)
    return definition, topic_options(definition)


def topic_options(definition: Any) -> TopicOptions:
    """Check a topic's definition and return its options."""
    limits.check_labels(definition.labels)
    if not definition.HasField("message_retention_duration"):
        return TopicOptions()
    retention = seconds_of(definition.message_retention_duration)
    limits.check_range("message_retention_duration", retention, limits.RETENTION)
    return TopicOptions(retention)


def echo_topic(topic: Topic) -> Any:
    """Return a topic as the service shows it."""
    echo = _copy(topic.definition)
    echo.state = protos.Topic.State.Value("ACTIVE")
    return echo


def with_schema(definition: Any, name: str) -> Any:
    """Return the definition with another schema's name."""
    copy = _copy(definition)
    copy.schema_settings.schema = name
    return copy


# ── subscriptions ──


def new_subscription(request: Any) -> tuple[Any, SubscriptionOptions]:
    """Complete and check the definition of a subscription; return it and its options."""
    names.check(Kind.SUBSCRIPTION, request.name)
    names.check(Kind.TOPIC, request.topic)
    definition = _copy(request)
    for field in (*_OUTPUT_ONLY, "tags"):
        if field in definition.DESCRIPTOR.fields_by_name:
            definition.ClearField(field)
    return complete_subscription(definition)


def complete_subscription(definition: Any) -> tuple[Any, SubscriptionOptions]:
    """Fill the defaults into a definition of one's own, check it, and return it with its options."""
    _fill_in(definition)
    return definition, subscription_options(definition)


def _fill_in(definition: Any) -> None:
    if not definition.ack_deadline_seconds:
        definition.ack_deadline_seconds = limits.DEFAULT_ACK_DEADLINE
    if not definition.HasField("message_retention_duration"):
        definition.message_retention_duration.seconds = int(limits.DEFAULT_RETENTION)
    if not definition.HasField("expiration_policy"):
        definition.expiration_policy.ttl.seconds = int(limits.DEFAULT_EXPIRATION_TTL)
    if not definition.HasField("push_config"):
        definition.push_config.SetInParent()
    if definition.HasField("dead_letter_policy") and not definition.dead_letter_policy.max_delivery_attempts:
        definition.dead_letter_policy.max_delivery_attempts = limits.DEFAULT_DELIVERY_ATTEMPTS
    if definition.HasField("retry_policy"):
        low, high = limits.DEFAULT_BACKOFF
        if not definition.retry_policy.HasField("minimum_backoff"):
            definition.retry_policy.minimum_backoff.seconds = int(low)
        if not definition.retry_policy.HasField("maximum_backoff"):
            definition.retry_policy.maximum_backoff.seconds = int(high)


def subscription_options(definition: Any) -> SubscriptionOptions:
    """Check a completed definition and return its options."""
    limits.check_ack_deadline(definition.ack_deadline_seconds)
    limits.check_labels(definition.labels)
    retention = seconds_of(definition.message_retention_duration)
    limits.check_range("message_retention_duration", retention, limits.RETENTION)
    ttl = _expiration_ttl(definition, retention)
    return SubscriptionOptions(
        ack_deadline=float(definition.ack_deadline_seconds),
        retention=retention,
        retains_acked=definition.retain_acked_messages,
        is_ordered=definition.enable_message_ordering,
        is_exactly_once=definition.enable_exactly_once_delivery,
        retry=_retry_policy(definition),
        dead_letter=_dead_letter_policy(definition),
        expires_after=ttl,
        accepts=filters.parse(definition.filter),
    )


def _expiration_ttl(definition: Any, retention: float) -> float:
    if not definition.expiration_policy.HasField("ttl"):
        return inf
    ttl = seconds_of(definition.expiration_policy.ttl)
    if ttl < max(limits.MIN_EXPIRATION_TTL, retention):
        raise invalid(
            f"Invalid expiration_policy: its ttl of {ttl:g} seconds is less than a day or than the retention of "
            f"{retention:g} seconds."
        )
    return ttl


def _retry_policy(definition: Any) -> RetryPolicy | None:
    if not definition.HasField("retry_policy"):
        return None
    minimum = seconds_of(definition.retry_policy.minimum_backoff)
    maximum = seconds_of(definition.retry_policy.maximum_backoff)
    limits.check_range("minimum_backoff", minimum, limits.BACKOFF)
    limits.check_range("maximum_backoff", maximum, limits.BACKOFF)
    if minimum > maximum:
        raise invalid(f"Invalid retry_policy: minimum_backoff of {minimum:g} seconds is over {maximum:g}, the maximum.")
    return RetryPolicy(minimum, maximum)


def _dead_letter_policy(definition: Any) -> DeadLetterPolicy | None:
    if not definition.HasField("dead_letter_policy"):
        return None
    policy = definition.dead_letter_policy
    if policy.dead_letter_topic != names.DELETED_TOPIC:
        names.check(Kind.TOPIC, policy.dead_letter_topic)
    low, high = limits.DELIVERY_ATTEMPTS
    if not low <= policy.max_delivery_attempts <= high:
        raise invalid(
            f"Invalid dead_letter_policy: max_delivery_attempts of {policy.max_delivery_attempts} is not within {low} "
            f"and {high}."
        )
    return DeadLetterPolicy(policy.dead_letter_topic, policy.max_delivery_attempts)


def echo_subscription(subscription: Subscription) -> Any:
    """Return a subscription as the service shows it."""
    echo = _copy(subscription.definition)
    echo.topic = subscription.topic_name
    echo.state = protos.Subscription.State.Value("ACTIVE")
    echo.detached = subscription.is_detached
    retention = subscription.topic.options.retention if subscription.topic else None
    if retention:
        set_seconds(echo.topic_message_retention_duration, retention)
    return echo


def detached(definition: Any) -> Any:
    """Return the definition of a subscription after it was detached."""
    copy = _copy(definition)
    copy.detached = True
    return copy


def with_push_config(definition: Any, push_config: Any) -> Any:
    """Return the definition with another push configuration."""
    copy = _copy(definition)
    copy.push_config.CopyFrom(push_config)
    return copy


# ── snapshots ──


def new_snapshot(request: Any) -> Any:
    """Check a request for a snapshot and return its definition."""
    if request.name:
        names.check(Kind.SNAPSHOT, request.name)
    names.check(Kind.SUBSCRIPTION, request.subscription)
    limits.check_labels(request.labels)
    return protos.Snapshot(labels=request.labels)


def echo_snapshot(snapshot: Snapshot) -> Any:
    """Return a snapshot as the service shows it."""
    echo = _copy(snapshot.definition)
    echo.name = snapshot.name
    echo.topic = snapshot.topic_name
    set_seconds(echo.expire_time, snapshot.expires)
    return echo


# ── update masks ──


def updated(current: Any, wanted: Any, mask: Iterable[str]) -> Any:
    """Return `current` with what the mask names taken from `wanted`: replaced as a whole, unset where absent there.

    Raises INVALID_ARGUMENT for an empty mask, an unknown path, and what cannot be changed.
    """
    paths = list(mask)
    if not paths:
        raise invalid("The update_mask in the request must be set, and must contain a valid path.")
    result = _copy(current)
    for path in paths:
        _replace(result, wanted, path)
    return result


def _replace(target: Any, wanted: Any, path: str) -> None:
    first, _, rest = path.partition(".")
    field = target.DESCRIPTOR.fields_by_name.get(first)
    if field is None:
        raise invalid(f"Invalid update_mask provided in the request: there is no field {path!r}.")
    if first in _IMMUTABLE | _OUTPUT_ONLY:
        raise invalid(f"Invalid update_mask provided in the request: {path!r} cannot be changed.")
    if rest and field.message_type is not None and not field.is_repeated:
        _replace_within(getattr(target, first), getattr(wanted, first), rest)
        return
    if rest:
        raise invalid(f"Invalid update_mask provided in the request: {first!r} has no field {rest!r}.")
    target.ClearField(first)
    part = type(target)()
    part.CopyFrom(wanted)
    for other in part.DESCRIPTOR.fields_by_name:
        if other != first:
            part.ClearField(other)
    target.MergeFrom(part)


def _replace_within(target: Any, wanted: Any, path: str) -> None:
    target.SetInParent()
    _replace(target, wanted, path)


# ── durations and times ──


def seconds_of(moment: Any) -> float:
    """Read a Duration or Timestamp as seconds."""
    return float(moment.seconds + moment.nanos / _NANOS)


def set_seconds(moment: Any, seconds: float) -> None:
    """Write seconds into a Duration or Timestamp, microseconds kept."""
    micros = round(seconds * 1_000_000)
    moment.seconds, moment.nanos = micros // 1_000_000, micros % 1_000_000 * 1000


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
