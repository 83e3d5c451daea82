"""Protobuf classes for tests, made from the text of their descriptors: protoc is not needed, and versions can differ."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, text_format, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass


def protobuf_class(name: str, text: str, *, package: str = "acme.v1", syntax: str = "proto3") -> Any:
    """Return the class of one message of a file; `text` is the rest of its FileDescriptorProto, in text format."""
    file = text_format.Parse(text, FileDescriptorProto(name="acme.proto", package=package, syntax=syntax))
    pool = descriptor_pool.DescriptorPool()
    if file.dependency:
        pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}".lstrip(".")))


#: Something of everything that a .proto file can have.
MATCH = """
dependency: "google/protobuf/timestamp.proto"
message_type {
  name: "Match"
  field { name: "user_id" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "skills" number: 2 type: TYPE_MESSAGE type_name: ".acme.v1.Match.Skill" label: LABEL_REPEATED }
  field { name: "levels" number: 3 type: TYPE_MESSAGE type_name: ".acme.v1.Match.LevelsEntry" label: LABEL_REPEATED }
  field {
    name: "at" number: 5 type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp" label: LABEL_OPTIONAL
    json_name: "when"
  }
  field { name: "text" number: 9 type: TYPE_STRING label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "code" number: 10 type: TYPE_INT64 label: LABEL_OPTIONAL oneof_index: 0 }
  field {
    name: "remote" number: 11 type: TYPE_BOOL label: LABEL_OPTIONAL oneof_index: 1 proto3_optional: true
    options { deprecated: true }
  }
  field { name: "place" number: 12 type: TYPE_MESSAGE type_name: ".acme.v1.Place" label: LABEL_OPTIONAL }
  nested_type {
    name: "Skill"
    field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "parent" number: 2 type: TYPE_MESSAGE type_name: ".acme.v1.Match.Skill" label: LABEL_OPTIONAL }
  }
  nested_type {
    name: "LevelsEntry"
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_ENUM type_name: ".acme.v1.Match.Level" label: LABEL_OPTIONAL }
    options { map_entry: true }
  }
  enum_type {
    name: "Level"
    value { name: "LEVEL_UNSPECIFIED" number: 0 }
    value { name: "LEVEL_HIGH" number: 1 }
    reserved_range { start: 4 end: 5 }
    reserved_name: "LEVEL_LOW"
  }
  oneof_decl { name: "reason" }
  oneof_decl { name: "_remote" }
  reserved_range { start: 4 end: 5 }
  reserved_range { start: 6 end: 9 }
  reserved_name: "old"
}
message_type {
  name: "Place"
  field { name: "data" number: 1 type: TYPE_BYTES label: LABEL_OPTIONAL }
}
message_type { name: "NotLedTo" }
"""
