"""What a Protobuf class looks like, from its descriptor: as plain values to be compared, and as .proto text to be read.

Nothing here reads or writes messages (`protobufs` does), and nothing judges what it finds (`protobuf_changes` does).
Imported with the first Protobuf class that is looked at, because of the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

_REPEATED = FieldDescriptorProto.LABEL_REPEATED
_REQUIRED = FieldDescriptorProto.LABEL_REQUIRED


def shape_of(model: Any) -> dict[str, Any]:
    """Return the fields of a class that protoc generated, and all messages and enums that they lead to, by full name.

    `{"message": NAME, "fields": {NUMBER: …}, "reserved": …, "messages": {NAME: …}, "enums": {NAME: …}}`; ranges of
    reserved numbers have both their ends in them.
    """
    root = model.DESCRIPTOR
    messages, enums = _reached_from(root)
    del messages[root.full_name]
    return {
        "message": root.full_name,
        **_message_shape(root),
        "messages": {name: _message_shape(each) for name, each in messages.items()},
        "enums": {name: _enum_shape(each) for name, each in enums.items()},
    }


def _reached_from(root: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all messages and enums that a message's fields lead to, itself included."""
    messages, enums, ahead = {root.full_name: root}, {}, [root]
    while ahead:
        for field in ahead.pop().fields:
            if field.enum_type is not None:
                enums[field.enum_type.full_name] = field.enum_type
            inner = field.message_type
            if inner is not None and inner.full_name not in messages:
                messages[inner.full_name] = inner
                ahead.append(inner)
    return messages, enums


def _message_shape(message: Any) -> dict[str, Any]:
    written = _written(message, DescriptorProto)
    shape = {
        "fields": {str(field.number): _field_shape(field) for field in message.fields},
        "reserved": {
            # Its end is the first number that is not reserved: descriptor.proto, DescriptorProto.ReservedRange.
            "numbers": [[each.start, each.end - 1] for each in written.reserved_range],
            "names": sorted(written.reserved_name),
        },
    }
    return {**shape, "map": True} if written.options.map_entry else shape


def _field_shape(field: Any) -> dict[str, Any]:
    written = _written_field(field)
    shape = {"name": field.name, "json_name": field.json_name, "type": _type_word(written), "label": label_of(field)}
    if written.type_name:
        shape["of"] = written.type_name.lstrip(".")
    if oneof := _oneof(field, written):
        shape["oneof"] = oneof
    return shape


def label_of(field: Any) -> str:
    """Say how often a field may be there: required, repeated, optional (its absence shows), or implicit (not)."""
    written = _written_field(field)
    if written.label == _REPEATED:
        return "repeated"
    # Of an edition, only the descriptor knows, by its features.
    if written.label == _REQUIRED or getattr(field, "is_required", False):
        return "required"
    return "optional" if field.has_presence else "implicit"


def _type_word(written: FieldDescriptorProto) -> str:
    return str(FieldDescriptorProto.Type.Name(written.type)).removeprefix("TYPE_").lower()


def _oneof(field: Any, written: FieldDescriptorProto) -> str:
    # `optional` in proto3 is written as a oneof of its own, which nobody declared.
    return "" if field.containing_oneof is None or written.proto3_optional else str(field.containing_oneof.name)


def _enum_shape(enum: Any) -> dict[str, Any]:
    written = _written(enum, EnumDescriptorProto)
    return {
        "values": {value.name: value.number for value in enum.values},
        "reserved": {
            "numbers": [[each.start, each.end] for each in written.reserved_range],
            "names": sorted(written.reserved_name),
        },
    }


def _written(descriptor: Any, kind: Any) -> Any:
    """Return a descriptor as protoc wrote it."""
    proto = kind()
    descriptor.CopyToProto(proto)
    return proto


def _written_field(field: Any) -> Any:
    """Do so for a field, which the runtime gives only as a part of its message."""
    message = _written(field.containing_type, DescriptorProto)
    return next(each for each in message.field if each.number == field.number)


# ── as text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def proto_text(model: Any) -> str:
    """Write a .proto file of a class and all of its package that it leads to; other packages are imported."""
    root = model.DESCRIPTOR
    package = root.file.package
    messages, enums = _reached_from(root)
    reached = [*messages.values(), *enums.values()]
    imports = sorted({each.file.name for each in reached if each.file.package != package})
    ours = {_outermost(each).full_name: _outermost(each) for each in reached if each.file.package == package}
    parts = [f'syntax = "{syntax_of(root)}";']
    parts += [f"package {package};"] if package else []
    parts += ["\n".join(f'import "{name}";' for name in imports)] if imports else []
    parts += ["\n".join(_text(descriptor, root)) for descriptor in ours.values()]
    return "\n\n".join(parts) + "\n"


def syntax_of(descriptor: Any) -> str:
    """Return the syntax of a descriptor's file: proto2, or proto3, which stands for the editions, too."""
    # An empty one is proto2: descriptor.proto, FileDescriptorProto.syntax.
    return "proto2" if _written(descriptor.file, FileDescriptorProto).syntax in ("", "proto2") else "proto3"


def _outermost(descriptor: Any) -> Any:
    while descriptor.containing_type is not None:
        descriptor = descriptor.containing_type
    return descriptor


def _text(descriptor: Any, root: Any, indent: str = "") -> Iterator[str]:
    if descriptor.full_name == root.full_name:
        # By this word AsyncAPI's Protobuf parser knows which of several messages is meant.
        yield f"{indent}// @RootNode"
    is_message = hasattr(descriptor, "fields")
    yield f"{indent}{'message' if is_message else 'enum'} {descriptor.name} {{"
    inside = f"{indent}  "
    yield from _message_lines(descriptor, root, inside) if is_message else _enum_lines(descriptor, inside)
    yield f"{indent}}}"


def _message_lines(message: Any, root: Any, indent: str) -> Iterator[str]:
    shape = _message_shape(message)
    yield from _reserved_lines(shape["reserved"], indent)
    for inner in (*message.enum_types, *message.nested_types):
        if not (hasattr(inner, "fields") and _is_map_entry(inner)):
            yield from _text(inner, root, indent)
    told = set()
    for field in message.fields:
        oneof = shape["fields"][str(field.number)].get("oneof")
        if oneof is None:
            yield f"{indent}{_field_text(field)}"
        elif oneof not in told:
            told.add(oneof)
            yield f"{indent}oneof {oneof} {{"
            yield from (f"{indent}  {_field_text(member, in_oneof=True)}" for member in field.containing_oneof.fields)
            yield f"{indent}}}"


def _enum_lines(enum: Any, indent: str) -> Iterator[str]:
    if len({value.number for value in enum.values}) < len(enum.values):
        yield f"{indent}option allow_alias = true;"
    yield from _reserved_lines(_enum_shape(enum)["reserved"], indent)
    yield from (f"{indent}{value.name} = {value.number};" for value in enum.values)


def _reserved_lines(reserved: Any, indent: str) -> Iterator[str]:
    ranges = [str(first) if first == last else f"{first} to {last}" for first, last in reserved["numbers"]]
    if ranges:
        yield f"{indent}reserved {', '.join(ranges)};"
    if reserved["names"]:
        names = [f'"{name}"' for name in reserved["names"]]
        yield f"{indent}reserved {', '.join(names)};"


def _field_text(field: Any, *, in_oneof: bool = False) -> str:
    written = _written_field(field)
    label = "" if in_oneof else _label_text(field)
    of = field.message_type
    if of is not None and _is_map_entry(of):
        key, value = (_type_text(each) for each in of.fields)
        label, kind = "", f"map<{key}, {value}>"
    else:
        kind = _type_text(field)
    options = ["deprecated = true"] if written.options.deprecated else []
    if field.json_name != _usual_json_name(field.name):
        options.append(f'json_name = "{field.json_name}"')
    told = f" [{', '.join(options)}]" if options else ""
    return f"{label}{kind} {field.name} = {field.number}{told};"


def _label_text(field: Any) -> str:
    label = label_of(field)
    # In proto3 a message's absence shows without a word.
    is_plain = label == "implicit" or (
        label == "optional" and field.message_type is not None and syntax_of(field) == "proto3"
    )
    return "" if is_plain else f"{label} "


def _type_text(field: Any) -> str:
    written = _written_field(field)
    # Whole names begin with a dot; those of the same package are known without it.
    name = str(written.type_name).removeprefix(".")
    return name.removeprefix(f"{field.file.package}.") or _type_word(written)


def _is_map_entry(message: Any) -> bool:
    return bool(_written(message, DescriptorProto).options.map_entry)


def _usual_json_name(name: str) -> str:
    """Return the JSON name of a field that was given none: https://protobuf.dev/programming-guides/json/#json-options."""
    return re.sub(r"_+([^_]?)", lambda found: found[1].upper(), name)
