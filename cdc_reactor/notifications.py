"""Notifications: the channel-neutral model that notification workers return.

Nothing here sends anything: `notification_delivery` publishes them or hands them to a sink.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, Field

from cdc_reactor.events import Event


class Notification(Event, topic="notification.requested.v1"):
    """Something to be told to people, by whatever channel each of them has chosen.

    `context` is what the texts of its type need. Of notifications with one `dedupe_key` only the first within the
    configured window is sent; without a key all are. `send_at` is the time not to send it before.
    """

    type: str = Field(min_length=1)
    recipients: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    context: dict[str, Any] = Field(default_factory=dict)
    dedupe_key: str = ""
    send_at: AwareDatetime | None = None
