"""google.iam.v1.IAMPolicy on the same port: the stock clients call it through the Publisher and the Subscriber."""

from __future__ import annotations

import pytest

BINDING = {"role": "roles/pubsub.viewer", "members": ["domain:google.com"]}


@pytest.fixture(params=["topics", "subscriptions", "snapshots", "schemas"])
def resource(request, pubsub):
    topic, subscription = pubsub.pair()
    if request.param == "snapshots":
        name = pubsub.name("snapshots")
        return pubsub.subscriber.create_snapshot({"name": name, "subscription": subscription}).name
    if request.param == "schemas":
        name = pubsub.name("schemas")
        schema = {"type_": "AVRO", "definition": '{"type": "record", "name": "R", "fields": []}'}
        request = {"parent": pubsub.project, "schema": schema, "schema_id": name.rsplit("/", 1)[1]}
        return pubsub.schemas.create_schema(request).name
    return {"topics": topic, "subscriptions": subscription}[request.param]


def test_a_policy_is_empty_at_first(pubsub, resource):
    assert list(pubsub.publisher.get_iam_policy({"resource": resource}).bindings) == []


def test_a_policy_is_given_back_as_it_was_set(pubsub, resource):
    made = pubsub.publisher.set_iam_policy({"resource": resource, "policy": {"bindings": [BINDING]}})

    found = pubsub.subscriber.get_iam_policy({"resource": resource})

    assert [(one.role, list(one.members)) for one in found.bindings] == [(BINDING["role"], BINDING["members"])]
    assert found.etag == made.etag != b""


def test_the_owner_has_the_permissions_asked_for(pubsub):
    topic = pubsub.topic()
    asked = ["pubsub.topics.get", "pubsub.topics.publish"]

    granted = pubsub.publisher.test_iam_permissions({"resource": topic, "permissions": asked})

    assert sorted(granted.permissions) == asked


def test_a_policy_of_what_is_not_there_is_not_found(pubsub):
    with pubsub.refuses("NOT_FOUND"):
        pubsub.publisher.get_iam_policy({"resource": pubsub.name("topics")})
