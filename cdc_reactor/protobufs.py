"""Protobuf messages ↔ bytes, binary or JSON, by the Protobuf runtime; no I/O.

Imported by `events` when the first Protobuf class is read or written, because the runtime's JSON takes 35 ms to import.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import EncodeError

from cdc_reactor.errors import DecodeError


def read(model: Any, data: bytes, *, is_json: bool, topic: str) -> Any:
    """Read a message of a class that protoc generated; fields that the class does not know are ignored.

    Raises:
        DecodeError: the bytes are no such message, or a required field (proto2) is missing.
    """
    message = model()
    try:
        if is_json:
            json_format.Parse(data, message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(data)
    except (ProtobufDecodeError, json_format.ParseError, UnicodeDecodeError) as error:
        # What the runtime says may quote the value.
        kind = "JSON of this message" if is_json else "message of this class"
        raise DecodeError(f"{model.__name__} ({topic}): these {len(data):,} bytes are no {kind}") from error
    if not message.IsInitialized():
        missing = ", ".join(message.FindInitializationErrors())
        raise DecodeError(f"{model.__name__} ({topic}): required fields are missing: {missing}")
    return message


def write(message: Any, *, is_json: bool) -> bytes:
    """Write a message, the same bytes each time; ValueError where a required field (proto2) is missing."""
    try:
        if is_json:
            return str(json_format.MessageToJson(message, indent=None)).encode()
        return bytes(message.SerializeToString(deterministic=True))
    except (EncodeError, json_format.SerializeToJsonError) as error:
        raise ValueError(str(error)) from error
