"""The raw protobuf classes of the API, without proto-plus around them: parsing them costs a tenth.

google-cloud-pubsub has the descriptors and no typed pb2 modules, so they are Any here and nowhere else by surprise.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from google.pubsub_v1.types import pubsub, schema


def _pb(wrapper: Any) -> Any:
    return wrapper.pb()


Topic = _pb(pubsub.Topic)
Subscription = _pb(pubsub.Subscription)
Snapshot = _pb(pubsub.Snapshot)
UpdateTopicRequest = _pb(pubsub.UpdateTopicRequest)
GetTopicRequest = _pb(pubsub.GetTopicRequest)
ListTopicsRequest = _pb(pubsub.ListTopicsRequest)
ListTopicsResponse = _pb(pubsub.ListTopicsResponse)
ListTopicSubscriptionsRequest = _pb(pubsub.ListTopicSubscriptionsRequest)
ListTopicSubscriptionsResponse = _pb(pubsub.ListTopicSubscriptionsResponse)
ListTopicSnapshotsRequest = _pb(pubsub.ListTopicSnapshotsRequest)
ListTopicSnapshotsResponse = _pb(pubsub.ListTopicSnapshotsResponse)
DeleteTopicRequest = _pb(pubsub.DeleteTopicRequest)
DetachSubscriptionRequest = _pb(pubsub.DetachSubscriptionRequest)
DetachSubscriptionResponse = _pb(pubsub.DetachSubscriptionResponse)
PublishRequest = _pb(pubsub.PublishRequest)
PublishResponse = _pb(pubsub.PublishResponse)
PubsubMessage = _pb(pubsub.PubsubMessage)

UpdateSubscriptionRequest = _pb(pubsub.UpdateSubscriptionRequest)
GetSubscriptionRequest = _pb(pubsub.GetSubscriptionRequest)
ListSubscriptionsRequest = _pb(pubsub.ListSubscriptionsRequest)
ListSubscriptionsResponse = _pb(pubsub.ListSubscriptionsResponse)
DeleteSubscriptionRequest = _pb(pubsub.DeleteSubscriptionRequest)
ModifyPushConfigRequest = _pb(pubsub.ModifyPushConfigRequest)
ModifyAckDeadlineRequest = _pb(pubsub.ModifyAckDeadlineRequest)
AcknowledgeRequest = _pb(pubsub.AcknowledgeRequest)
PullRequest = _pb(pubsub.PullRequest)
PullResponse = _pb(pubsub.PullResponse)
StreamingPullRequest = _pb(pubsub.StreamingPullRequest)
StreamingPullResponse = _pb(pubsub.StreamingPullResponse)
CreateSnapshotRequest = _pb(pubsub.CreateSnapshotRequest)
GetSnapshotRequest = _pb(pubsub.GetSnapshotRequest)
ListSnapshotsRequest = _pb(pubsub.ListSnapshotsRequest)
ListSnapshotsResponse = _pb(pubsub.ListSnapshotsResponse)
UpdateSnapshotRequest = _pb(pubsub.UpdateSnapshotRequest)
DeleteSnapshotRequest = _pb(pubsub.DeleteSnapshotRequest)
SeekRequest = _pb(pubsub.SeekRequest)
SeekResponse = _pb(pubsub.SeekResponse)

Schema = _pb(schema.Schema)
CreateSchemaRequest = _pb(schema.CreateSchemaRequest)
GetSchemaRequest = _pb(schema.GetSchemaRequest)
ListSchemasRequest = _pb(schema.ListSchemasRequest)
ListSchemasResponse = _pb(schema.ListSchemasResponse)
ListSchemaRevisionsRequest = _pb(schema.ListSchemaRevisionsRequest)
ListSchemaRevisionsResponse = _pb(schema.ListSchemaRevisionsResponse)
CommitSchemaRequest = _pb(schema.CommitSchemaRequest)
RollbackSchemaRequest = _pb(schema.RollbackSchemaRequest)
DeleteSchemaRequest = _pb(schema.DeleteSchemaRequest)
DeleteSchemaRevisionRequest = _pb(schema.DeleteSchemaRevisionRequest)
ValidateSchemaRequest = _pb(schema.ValidateSchemaRequest)
ValidateSchemaResponse = _pb(schema.ValidateSchemaResponse)
ValidateMessageRequest = _pb(schema.ValidateMessageRequest)
ValidateMessageResponse = _pb(schema.ValidateMessageResponse)

# By name: these modules have no types at all.
_policies = import_module("google.iam.v1.iam_policy_pb2")

Empty: Any = import_module("google.protobuf.empty_pb2").Empty
Policy: Any = import_module("google.iam.v1.policy_pb2").Policy
SetIamPolicyRequest: Any = _policies.SetIamPolicyRequest
GetIamPolicyRequest: Any = _policies.GetIamPolicyRequest
TestIamPermissionsRequest: Any = _policies.TestIamPermissionsRequest
TestIamPermissionsResponse: Any = _policies.TestIamPermissionsResponse

Status: Any = import_module("google.rpc.status_pb2").Status
ErrorInfo: Any = import_module("google.rpc.error_details_pb2").ErrorInfo

#: Raised by FromString for bytes that are no such message.
DecodeError: type[Exception] = import_module("google.protobuf.message").DecodeError
