"""The one place where errors become gRPC statuses.

A domain error becomes its own status with AIP-193 details; anything else becomes INTERNAL without a word
of its text, and is logged with a traceback. Bytes that are not the declared message become
INVALID_ARGUMENT: deserialisation happens inside the wrapped handler, not in grpcio's C core.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from forebay.errors import DOMAIN, ForebayError, InvalidArgument, MalformedMessage, Unavailable
from forebay.telemetry import REQUEST_ID_KEY

log = structlog.get_logger(__name__)
STATUS_DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata is limited to 8 KiB; the message travels three times, in one of them percent-encoded.
MAX_MESSAGE_BYTES, MAX_METADATA_BYTES = 600, 200


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every handler, unary or streaming in either direction."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Replace the handler by one that translates errors and parses its own messages."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _wrap(handler, handler_call_details)


def _wrap(handler: grpc.RpcMethodHandler, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
    parse = handler.request_deserializer or (lambda raw: raw)
    method = _method_of(handler)

    def run(raw: Any, context: grpc.aio.ServicerContext) -> Any:
        request = _stream(raw, parse) if handler.request_streaming else _parse(raw, parse)
        return method(request, context)

    async def call(raw: Any, context: grpc.aio.ServicerContext) -> Any:
        async with _translated(context, details):
            return await run(raw, context)

    async def generate(raw: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        async with _translated(context, details):
            async for response in run(raw, context):
                yield response

    # A streaming method may also be a coroutine that writes to the context, as the stock health service's is.
    is_generator = handler.response_streaming and not inspect.iscoroutinefunction(method)
    return _make_handler(handler, generate if is_generator else call)


@contextlib.asynccontextmanager
async def _translated(
    context: grpc.aio.ServicerContext, details: grpc.HandlerCallDetails
) -> AsyncIterator[None]:
    """The request id bound for logs, and every error turned into a status."""
    metadata = dict(details.invocation_metadata or ())
    with structlog.contextvars.bound_contextvars(request_id=metadata.get(REQUEST_ID_KEY, "")):
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the one interceptor
            await _abort(error, context, details.method)


def _method_of(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _make_handler(handler: grpc.RpcMethodHandler, behaviour: Any) -> grpc.RpcMethodHandler:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)


def _parse(raw: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage("the request is not a valid message of this method") from error


async def _stream(raws: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield _parse(raw, parse)


async def _abort(error: Exception, context: grpc.aio.ServicerContext, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, ForebayError):
        log.error("internal_error", method=method, exc_info=error)
        error = ForebayError("internal error; the server's log has the details")
    trailing = ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),)
    log.info("rpc_error", method=method, code=error.status.name, reason=error.reason)
    await context.abort(error.status, clip(error.message, MAX_MESSAGE_BYTES), trailing_metadata=trailing)


def clip(text: str, max_bytes: int) -> str:
    """At most `max_bytes` of UTF-8, cut at a character; what UTF-8 cannot hold becomes '?'."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def to_status(error: ForebayError) -> status_pb2.Status:
    """`google.rpc.Status` with ErrorInfo always, BadRequest or RetryInfo where they apply (AIP-193)."""
    message = clip(error.message, MAX_MESSAGE_BYTES)
    metadata = {name: clip(value, MAX_METADATA_BYTES) for name, value in error.metadata.items()}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=metadata["field"], description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Unavailable):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.status.value[0], message=message, details=packed)
