"""What a failed call raises: reason, hint and retry delay, read from the `google.rpc.Status` behind it."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from forebay.errors import ForebayError

STATUS_DETAILS_KEY = "grpc-status-details-bin"
NOT_REACHED = "NOT_REACHED"
# What the caller can do about it, by reason.
HINTS = {
    NOT_REACHED: "`forebay up` starts a gateway",
    "NO_DECODE_CAPACITY": "`forebay top` shows which workers are alive; try again when one is back",
    "OVERLOADED": "send fewer requests at once, or add workers",
    "DRAINING": "it is being stopped: another gateway, or the same one after its restart, takes new requests",
    "STARTING": "`forebay health` says when it serves",
    "MODEL_NOT_FOUND": "`forebay models` lists what is served",
    "REQUEST_RUNNING": "ask again when it has ended",
    "REQUEST_NOT_FOUND": "its receipt also came with the last message of its stream",
    "SLOW_CONSUMER": "read the stream faster, or ask for fewer tokens at once",
    "DEADLINE_EXCEEDED": "allow more time with timeout_s (--timeout), or ask for fewer tokens",
}


class CallError(ForebayError):
    """Base of all failures of a call.

    `code`: gRPC status; `reason`: stable upper-case word; `retry_after_s`: how long the server asks to wait,
    None where trying again does not help; `hint`: what to do, "" where there is nothing to add;
    `metadata`: machine-readable details such as the field, its limit and what was got.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        retry_after_s: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason or code.name, **metadata)
        self.code, self.retry_after_s = code, retry_after_s
        self.hint = HINTS.get(self.reason, "")


class InvalidRequest(CallError):
    """The request is wrong; `metadata` names the field, the limit and what was got."""


class UnknownName(CallError):
    """The named thing does not exist, or not any more."""


class Overloaded(CallError):
    """A quota or a buffer is full."""


class ServiceUnavailable(CallError):
    """Nobody can serve this now; try again after `retry_after_s`."""


class DeadlineExceeded(CallError):
    """The call's time is up."""


class Cancelled(CallError):
    """The call was ended from this side or by the server's shutdown."""


class InternalError(CallError):
    """The server's fault."""


_KINDS: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: UnknownName,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: InternalError,
}


def to_error(error: grpc.RpcError, address: str) -> CallError:
    """The typed error of a failed call to `address`."""
    code, text = error.code(), error.details() or ""
    info, retry_after_s = _read(error)
    kind = _KINDS.get(code, CallError)
    if code is grpc.StatusCode.UNAVAILABLE and not info.reason:
        message = f"nothing answers at {address}"
        return kind(message, code=code, reason=NOT_REACHED, retry_after_s=retry_after_s)
    message = f"{code.name}: {text}" + (f" [{info.reason}]" if info.reason else "")
    metadata = {name: value for name, value in info.metadata.items() if name not in _TAKEN}
    return kind(message, code=code, reason=info.reason, retry_after_s=retry_after_s, **metadata)


_TAKEN = frozenset(("message", "code", "reason", "retry_after_s", "self"))


def _read(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, float | None]:
    info, retry, found = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in _status(error).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            found = retry.retry_delay.ToNanoseconds() / 1e9
    return info, found


def _status(error: grpc.RpcError) -> status_pb2.Status:
    """The rich status; an empty one where a proxy or an old server sent none, or not a valid one."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            try:
                status.ParseFromString(value)
            except DecodeError:
                return status_pb2.Status()
    return status
