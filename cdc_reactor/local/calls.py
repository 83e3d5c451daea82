"""Between gRPC and the services: bytes in and out, refusals as statuses.

Requests arrive as bytes, so that their size can be checked and they are parsed by the raw protobuf classes; replies
leave as bytes, so that messages are never serialised twice. grpc has no types; it is Any here.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from cdc_reactor.local import protos
from cdc_reactor.local.engine import Engine
from cdc_reactor.local.refusals import Refused, invalid

#: Takes a parsed request, returns a reply (a protobuf message, or bytes that are one), or a promise of it.
Method: TypeAlias = Callable[[Any], Any]

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A port that another broker listens on is taken.
    ("grpc.so_reuseport", 0),
    # Clients may ping as often as they like: some find out by it that a connection is dead.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


def new_server() -> Any:
    """Return a server that serves nothing yet."""
    return grpc.aio.server(options=_OPTIONS)


def service(name: str, handlers: Mapping[str, Any]) -> Any:
    """Return a service for `server.add_generic_rpc_handlers`."""
    return grpc.method_handlers_generic_handler(name, handlers)


def unary(engine: Engine, parser: Any, method: Method, *, check_size: Callable[[int], None] | None = None) -> Any:
    """Return the handler of a unary method; `check_size` gets the request's bytes."""

    async def call(raw: bytes, context: Any) -> bytes:
        try:
            engine.admit()
            if check_size is not None:
                check_size(len(raw))
            reply = method(parse(parser, raw))
            if inspect.isawaitable(reply):
                reply = await reply
        except Refused as refused:
            await abort(context, refused)
        return reply if isinstance(reply, bytes) else bytes(reply.SerializeToString())

    return grpc.unary_unary_rpc_method_handler(call)


def streaming(call: Callable[[Any, Any], Awaitable[None]]) -> Any:
    """Return the handler of a method that streams bytes both ways."""
    return grpc.stream_stream_rpc_method_handler(call)


def raw_unary(call: Callable[[bytes, Any], Awaitable[bytes]]) -> Any:
    """Return the handler of a unary method that does everything itself."""
    return grpc.unary_unary_rpc_method_handler(call)


def parse(parser: Any, raw: bytes) -> Any:
    """Parse a request; raises INVALID_ARGUMENT."""
    try:
        return parser.FromString(raw)
    except protos.DecodeError as error:
        raise invalid(f"The request is no {parser.DESCRIPTOR.name}: {error}") from None


async def abort(context: Any, refused: Refused) -> None:
    """End a call with the status of a refusal; does not return."""
    code = getattr(grpc.StatusCode, refused.code.name)
    message = str(refused)
    trailing: tuple[tuple[str, bytes], ...] = ()
    if refused.failures is not None:
        trailing = (("grpc-status-details-bin", _details(refused, message)),)
    await context.abort(code, message, trailing)


def _details(refused: Refused, message: str) -> bytes:
    """Tell for each ack id why it failed, as the service does: google.rpc.Status with an ErrorInfo."""
    status = protos.Status(code=refused.code.value, message=message)
    info = protos.ErrorInfo(
        reason="EXACTLY_ONCE_ACKID_FAILURE", domain="pubsub.googleapis.com", metadata=refused.failures
    )
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())
