"""The one place where errors become gRPC statuses.

A domain error becomes its own status with AIP-193 details; anything else becomes INTERNAL without a word
of its text, and is logged with a traceback. Bytes that are not the declared message become
INVALID_ARGUMENT: deserialisation happens inside the wrapped handler, not in grpcio's C core.
"""

from __future__ import annotations

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
    bound = {key: value for key, value in details.invocation_metadata or () if key == REQUEST_ID_KEY}

    def request_of(raw: Any) -> Any:
        return _stream(raw, parse) if handler.request_streaming else _parse(raw, parse)

    async def unary(raw: Any, context: grpc.aio.ServicerContext) -> Any:
        with structlog.contextvars.bound_contextvars(request_id=bound.get(REQUEST_ID_KEY, "")):
            try:
                method = handler.stream_unary if handler.request_streaming else handler.unary_unary
                return await method(request_of(raw), context)
            except Exception as error:  # noqa: BLE001 - the one interceptor
                await _abort(error, context, details.method)

    async def streaming(raw: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        with structlog.contextvars.bound_contextvars(request_id=bound.get(REQUEST_ID_KEY, "")):
            try:
                method = handler.stream_stream if handler.request_streaming else handler.unary_stream
                async for response in method(request_of(raw), context):
                    yield response
            except Exception as error:  # noqa: BLE001 - the one interceptor
                await _abort(error, context, details.method)

    return _make_handler(handler, streaming if handler.response_streaming else unary)


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
    await context.abort(error.status, error.message, trailing_metadata=trailing)


def to_status(error: ForebayError) -> status_pb2.Status:
    """`google.rpc.Status` with ErrorInfo always, BadRequest or RetryInfo where they apply (AIP-193)."""
    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.metadata["field"], description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Unavailable):
        delay = duration_pb2.Duration(nanos=int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.status.value[0], message=error.message, details=packed)
