"""Names of resources: `projects/{project}/topics/{topic}` and their like. Pure.

Source: https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
"""

from __future__ import annotations

import re
from enum import Enum

from cdc_reactor.local.refusals import invalid

#: What a subscription says of a topic that was deleted, and a snapshot too.
DELETED_TOPIC = "_deleted-topic_"

_PROJECT = re.compile(r"projects/(?P<project>[A-Za-z0-9.:_-]+)")
_ID = r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}"


class Kind(Enum):
    """The kinds of resources, as their names spell them."""

    TOPIC = "topics"
    SUBSCRIPTION = "subscriptions"
    SNAPSHOT = "snapshots"
    SCHEMA = "schemas"


_NAMES = {kind: re.compile(rf"{_PROJECT.pattern}/{kind.value}/(?P<id>{_ID})") for kind in Kind}


def check(kind: Kind, name: str) -> str:
    """Return the name; raise INVALID_ARGUMENT when it is none of this kind."""
    if not _NAMES[kind].fullmatch(name):
        raise invalid(
            f"Invalid resource name given (name={name!r}): expected projects/PROJECT/{kind.value}/ID, where ID is 3 to "
            "255 letters, digits or -_.~+%, starts with a letter and not with goog. Refer to "
            "https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names for more information."
        )
    return name


def check_project(name: str) -> str:
    """Return `projects/{project}`; raise INVALID_ARGUMENT when it is none."""
    if not _PROJECT.fullmatch(name):
        raise invalid(f"Invalid project name given (name={name!r}): expected projects/PROJECT.")
    return name


def project_of(name: str) -> str:
    """Return `projects/{project}`, the beginning of a checked name."""
    return "/".join(name.split("/", 2)[:2])


def parts(name: str) -> tuple[str, str]:
    """Return the project's id and the resource's own id of a checked name."""
    pieces = name.split("/", 3)
    return pieces[1], pieces[3]
