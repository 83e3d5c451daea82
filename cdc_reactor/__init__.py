"""React to database changes that Debezium captures: typed rows, ordered batches, one module a table.

The public names, and nothing else. Each is imported when it is first asked for: pytest imports this package at every
start for its plugin, and pydantic alone takes 0.2 s.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_reactor.changes import Batch, Change, Create, Delete, Row, Truncate, Update
    from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable, ReactorError, Reject, Retry
    from cdc_reactor.event_publisher import EventPublisher, publish, publish_async
    from cdc_reactor.events import Event, ProtobufEvent
    from cdc_reactor.experiments import Allocation, Allocations, ExperimentClient, ExperimentsInMemory
    from cdc_reactor.handlers import Context, Handler, handles
    from cdc_reactor.messages import Message
    from cdc_reactor.notifications import Notification
    from cdc_reactor.scalars import Geometry, Point
    from cdc_reactor.temporals import Infinity, Interval, IsoText
    from cdc_reactor.wire_types import (
        Base64Bytes,
        Base64UrlBytes,
        DecimalBytes,
        DecimalString,
        EpochDays,
        HexBytes,
        IsoDate,
        IsoTime,
        IsoTimestamp,
        MicroDuration,
        MicroTime,
        MicroTimestamp,
        MilliTime,
        MilliTimestamp,
        NanoTime,
        NanoTimestamp,
        VariableDecimal,
    )
    from cdc_reactor.workers import Worker, notifies, subscribes

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Allocations",
    "Base64Bytes",
    "Base64UrlBytes",
    "Batch",
    "Change",
    "Context",
    "Create",
    "DecimalBytes",
    "DecimalString",
    "DecodeError",
    "DefinitionError",
    "Delete",
    "EpochDays",
    "Event",
    "EventPublisher",
    "ExperimentClient",
    "ExperimentsInMemory",
    "Geometry",
    "Handler",
    "HexBytes",
    "ImageUnavailable",
    "Infinity",
    "Interval",
    "IsoDate",
    "IsoText",
    "IsoTime",
    "IsoTimestamp",
    "Message",
    "MicroDuration",
    "MicroTime",
    "MicroTimestamp",
    "MilliTime",
    "MilliTimestamp",
    "NanoTime",
    "NanoTimestamp",
    "Notification",
    "Point",
    "ProtobufEvent",
    "ReactorError",
    "Reject",
    "Retry",
    "Row",
    "Truncate",
    "Update",
    "VariableDecimal",
    "Worker",
    "handles",
    "notifies",
    "publish",
    "publish_async",
    "subscribes",
]

_ELSEWHERE = {
    "changes": ("Batch", "Change", "Create", "Delete", "Row", "Truncate", "Update"),
    "errors": ("DecodeError", "DefinitionError", "ImageUnavailable", "ReactorError", "Reject", "Retry"),
    "event_publisher": ("EventPublisher", "publish", "publish_async"),
    "events": ("Event", "ProtobufEvent"),
    "experiments": ("Allocation", "Allocations", "ExperimentClient", "ExperimentsInMemory"),
    "handlers": ("Context", "Handler", "handles"),
    "messages": ("Message",),
    "notifications": ("Notification",),
    "workers": ("Worker", "notifies", "subscribes"),
    "scalars": ("Geometry", "Point"),
    "temporals": ("Infinity", "Interval", "IsoText"),
}
_MODULE_OF = dict.fromkeys(__all__, "wire_types") | {name: home for home, names in _ELSEWHERE.items() for name in names}


# Type checkers that saw it would believe in every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
