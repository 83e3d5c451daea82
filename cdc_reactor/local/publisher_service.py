"""google.pubsub.v1.Publisher: topics, and publishing to them."""

from __future__ import annotations

from typing import Any

from cdc_reactor.local import calls, definitions, limits, names, paging, protos, wire
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.names import Kind
from cdc_reactor.local.refusals import invalid, precondition
from cdc_reactor.local.schema_registry import SchemaRegistry

NAME = "google.pubsub.v1.Publisher"


class PublisherService:
    """The methods, each from its parsed request to its reply."""

    def __init__(self, engine: Engine, schemas: SchemaRegistry) -> None:
        self._engine = engine
        self._broker = engine.broker
        self._schemas = schemas

    def handlers(self) -> dict[str, Any]:
        """Return the handlers by method name."""
        methods = {
            "CreateTopic": (protos.Topic, self._create_topic),
            "UpdateTopic": (protos.UpdateTopicRequest, self._update_topic),
            "GetTopic": (protos.GetTopicRequest, self._get_topic),
            "ListTopics": (protos.ListTopicsRequest, self._list_topics),
            "ListTopicSubscriptions": (protos.ListTopicSubscriptionsRequest, self._list_subscriptions),
            "ListTopicSnapshots": (protos.ListTopicSnapshotsRequest, self._list_snapshots),
            "DeleteTopic": (protos.DeleteTopicRequest, self._delete_topic),
            "DetachSubscription": (protos.DetachSubscriptionRequest, self._detach),
        }
        handlers = {name: calls.unary(self._engine, parser, method) for name, (parser, method) in methods.items()}
        handlers["Publish"] = calls.unary(self._engine, protos.PublishRequest, self._publish, check_size=_check_size)
        return handlers

    async def _publish(self, request: Any) -> Any:
        names.check(Kind.TOPIC, request.topic)
        topic = self._broker.topic(request.topic)
        messages = request.messages
        limits.check_publish(len(messages), 0)
        drafts = []
        for message in messages:
            _check(message)
            key = message.ordering_key
            drafts.append((message.SerializeToString(), key))
        limits.check_ordering_keys(key for _, key in drafts)
        if topic.definition.HasField("schema_settings"):
            attributes = self._schemas.check_messages(topic.definition.schema_settings, messages)
            drafts = [(body + wire.attributes(more), key) for (body, key), more in zip(drafts, attributes, strict=True)]
        ids = await self._engine.publish(topic, drafts)
        return protos.PublishResponse(message_ids=ids)

    async def _create_topic(self, request: Any) -> Any:
        definition, options = definitions.new_topic(request)
        self._check_schema(definition)
        topic = self._broker.create_topic(definition.name, options, definition)
        await self._engine.confirmed()
        return definitions.echo_topic(topic)

    async def _update_topic(self, request: Any) -> Any:
        names.check(Kind.TOPIC, request.topic.name)
        topic = self._broker.topic(request.topic.name)
        definition = definitions.updated(topic.definition, request.topic, request.update_mask.paths)
        self._check_schema(definition)
        self._broker.update_topic(topic, definitions.topic_options(definition), definition)
        await self._engine.confirmed()
        return definitions.echo_topic(topic)

    def _check_schema(self, definition: Any) -> None:
        if definition.HasField("schema_settings"):
            self._schemas.check_settings(definition.schema_settings)

    def _get_topic(self, request: Any) -> Any:
        return definitions.echo_topic(self._broker.topic(names.check(Kind.TOPIC, request.topic)))

    def _list_topics(self, request: Any) -> Any:
        prefix = names.check_project(request.project) + "/"
        topics = [topic for topic in self._broker.topics.values() if topic.name.startswith(prefix)]
        found, token = paging.page(topics, lambda t: t.name, size=request.page_size, token=request.page_token)
        return protos.ListTopicsResponse(topics=map(definitions.echo_topic, found), next_page_token=token)

    def _list_subscriptions(self, request: Any) -> Any:
        topic = self._broker.topic(names.check(Kind.TOPIC, request.topic))
        owned = [subscription.name for subscription in topic.subscriptions]
        found, token = paging.page(owned, str, size=request.page_size, token=request.page_token)
        return protos.ListTopicSubscriptionsResponse(subscriptions=found, next_page_token=token)

    def _list_snapshots(self, request: Any) -> Any:
        topic = self._broker.topic(names.check(Kind.TOPIC, request.topic))
        owned = [snapshot.name for snapshot in topic.snapshots]
        found, token = paging.page(owned, str, size=request.page_size, token=request.page_token)
        return protos.ListTopicSnapshotsResponse(snapshots=found, next_page_token=token)

    async def _delete_topic(self, request: Any) -> Any:
        self._broker.delete_topic(names.check(Kind.TOPIC, request.topic))
        await self._engine.confirmed()
        return protos.Empty()

    async def _detach(self, request: Any) -> Any:
        name = names.check(Kind.SUBSCRIPTION, request.subscription)
        subscription = self._broker.subscription(name)
        if subscription.is_detached:
            raise precondition(f"The subscription is detached already (resource={name}).")
        self._broker.detach_subscription(name, definitions.detached(subscription.definition))
        await self._engine.confirmed()
        return protos.DetachSubscriptionResponse()


def _check_size(size_bytes: int) -> None:
    limits.check_publish(1, size_bytes)


def _check(message: Any) -> None:
    """Check one message, and clear what the publisher has no say in."""
    attributes = message.attributes
    if attributes:
        limits.check_attributes(attributes)
    elif not message.data:
        raise invalid("Some messages in the PublishRequest are empty: data or at least one attribute is needed.")
    if message.message_id:
        message.ClearField("message_id")
    if message.HasField("publish_time"):
        message.ClearField("publish_time")
