"""What a Protobuf class looks like: as values, and as the text of a .proto file."""

from __future__ import annotations

from typing import Any

from cdc_reactor.protobuf_shapes import proto_text, shape_of
from tests.protobuf_classes import MATCH, protobuf_class


def field(name, kind, *, json_name=None, label="implicit", **more):
    return {"name": name, "json_name": json_name or name, "type": kind, "label": label, **more}


NOTHING_RESERVED: dict[str, Any] = {"numbers": [], "names": []}


def test_a_shape_has_all_that_the_fields_lead_to():
    assert shape_of(protobuf_class("Match", MATCH)) == {
        "message": "acme.v1.Match",
        "fields": {
            "1": field("user_id", "string", json_name="userId"),
            "2": field("skills", "message", label="repeated", of="acme.v1.Match.Skill"),
            "3": field("levels", "message", label="repeated", of="acme.v1.Match.LevelsEntry"),
            "5": field("at", "message", json_name="when", label="optional", of="google.protobuf.Timestamp"),
            "9": field("text", "string", label="optional", oneof="reason"),
            "10": field("code", "int64", label="optional", oneof="reason"),
            "11": field("remote", "bool", label="optional"),
            "12": field("place", "message", label="optional", of="acme.v1.Place"),
        },
        "reserved": {"numbers": [[4, 4], [6, 8]], "names": ["old"]},
        "messages": {
            "acme.v1.Match.Skill": {
                "fields": {
                    "1": field("name", "string"),
                    "2": field("parent", "message", label="optional", of="acme.v1.Match.Skill"),
                },
                "reserved": NOTHING_RESERVED,
            },
            "acme.v1.Match.LevelsEntry": {
                "fields": {
                    "1": field("key", "string"),
                    "2": field("value", "enum", of="acme.v1.Match.Level"),
                },
                "reserved": NOTHING_RESERVED,
                "map": True,
            },
            "google.protobuf.Timestamp": {
                "fields": {"1": field("seconds", "int64"), "2": field("nanos", "int32")},
                "reserved": NOTHING_RESERVED,
            },
            "acme.v1.Place": {"fields": {"1": field("data", "bytes")}, "reserved": NOTHING_RESERVED},
        },
        "enums": {
            "acme.v1.Match.Level": {
                "values": {"LEVEL_UNSPECIFIED": 0, "LEVEL_HIGH": 1},
                "reserved": {"numbers": [[4, 5]], "names": ["LEVEL_LOW"]},
            }
        },
    }


def test_the_text_is_that_of_a_proto_file():
    assert (
        proto_text(protobuf_class("Match", MATCH))
        == """\
syntax = "proto3";

package acme.v1;

import "google/protobuf/timestamp.proto";

// @RootNode
message Match {
  reserved 4, 6 to 8;
  reserved "old";
  enum Level {
    reserved 4 to 5;
    reserved "LEVEL_LOW";
    LEVEL_UNSPECIFIED = 0;
    LEVEL_HIGH = 1;
  }
  message Skill {
    string name = 1;
    Match.Skill parent = 2;
  }
  string user_id = 1;
  repeated Match.Skill skills = 2;
  map<string, Match.Level> levels = 3;
  google.protobuf.Timestamp at = 5 [json_name = "when"];
  oneof reason {
    string text = 9;
    int64 code = 10;
  }
  optional bool remote = 11 [deprecated = true];
  Place place = 12;
}

message Place {
  bytes data = 1;
}
"""
    )


def test_the_text_of_proto2_names_every_label():
    old = protobuf_class(
        "Old",
        """
        message_type {
          name: "Old"
          field { name: "id" number: 1 type: TYPE_STRING label: LABEL_REQUIRED }
          field { name: "kind" number: 2 type: TYPE_ENUM type_name: ".Kind" label: LABEL_OPTIONAL }
          field { name: "inner" number: 3 type: TYPE_MESSAGE type_name: ".Old" label: LABEL_OPTIONAL }
        }
        enum_type { name: "Kind" value { name: "A" number: 1 } value { name: "B" number: 1 } options { allow_alias: true } }
        """,
        package="",
        syntax="proto2",
    )

    assert (
        proto_text(old)
        == """\
syntax = "proto2";

// @RootNode
message Old {
  required string id = 1;
  optional Kind kind = 2;
  optional Old inner = 3;
}

enum Kind {
  option allow_alias = true;
  A = 1;
  B = 1;
}
"""
    )


def test_a_class_within_another_is_written_where_it_stands():
    text = proto_text(protobuf_class("Match.Skill", MATCH))

    assert "message Match {\n" in text
    assert "  // @RootNode\n  message Skill {\n" in text
