"""A Protobuf class as protoc would generate it from `candidates.proto`, made of its descriptor when imported.

    syntax = "proto3";
    package forum.v1;
    message MatchedCandidate { string candidate_id = 1; int64 score = 2; repeated string skills = 3; }

Both sides import it: `official_publisher`, which knows nothing of ours, and the workers of the tests.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DEFINITION = """
syntax = "proto3";
message MatchedCandidate { string candidate_id = 1; int64 score = 2; repeated string skills = 3; }
"""

_FIELD = descriptor_pb2.FieldDescriptorProto


def _class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="forum/v1/candidates.proto", package="forum.v1", syntax="proto3")
    message = file.message_type.add(name="MatchedCandidate")
    for number, (name, kind, label) in enumerate(
        [
            ("candidate_id", _FIELD.TYPE_STRING, _FIELD.LABEL_OPTIONAL),
            ("score", _FIELD.TYPE_INT64, _FIELD.LABEL_OPTIONAL),
            ("skills", _FIELD.TYPE_STRING, _FIELD.LABEL_REPEATED),
        ],
        start=1,
    ):
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("forum.v1.MatchedCandidate"))


MatchedCandidate: Any = _class()
