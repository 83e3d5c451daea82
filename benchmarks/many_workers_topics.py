"""What `many_workers` and its workers agree on."""

from __future__ import annotations

import struct

#: What is written for each message: worker, number of the message, seconds from publication to the worker.
NOTE = struct.Struct("<IId")


def topic_of(number: int) -> str:
    """Name a topic by its number."""
    return f"ticks-{number}.v1"
