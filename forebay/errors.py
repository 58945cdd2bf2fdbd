"""The error tree: each class carries the gRPC status that its callers see.

Status and detail conventions follow AIP-193 (`google.rpc.Status` with `ErrorInfo`) and AIP-194
(only UNAVAILABLE is retryable). Messages are written for the caller: they name the field, the limit
and what was got, never internal state.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import grpc

DOMAIN = "forebay"


class ForebayError(Exception):
    """Base of all errors that may cross a wire: `reason` is stable, `metadata` is machine-readable.

    `hint` is for a person on this side of the wire: what to do about it.
    """

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    hint = ""

    def __init__(self, message: str, *, reason: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = {name: str(value) for name, value in metadata.items()}


class InvalidArgument(ForebayError):
    """The caller's data is wrong; `field`, `limit` and `got` say which and how."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        field: str,
        limit: object = "",
        got: object = "",
        reason: str | None = None,
    ) -> None:
        detail = message if not limit and got == "" else f"{message} (limit: {limit}, got: {got})"
        super().__init__(f"{field}: {detail}", reason=reason, field=field, limit=limit, got=got)


class MalformedMessage(ForebayError):
    """Bytes that are not the declared protobuf message."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MALFORMED_MESSAGE"


class ModelNotFound(ForebayError):
    """No worker serves the named model."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MODEL_NOT_FOUND"


class NotFound(ForebayError):
    """A named thing does not exist."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(ForebayError):
    """A thing of this name exists already."""

    status = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(ForebayError):
    """The system is not in a state that allows this; retrying alone does not help."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class UnsupportedModel(FailedPrecondition):
    """The model folder asks for something that this build does not implement."""

    reason = "UNSUPPORTED_MODEL"


class ResourceExhausted(ForebayError):
    """A quota or a bounded buffer is full."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class PoolExhausted(ResourceExhausted):
    """The block pool has fewer free blocks than were asked for."""

    reason = "POOL_EXHAUSTED"


class Unavailable(ForebayError):
    """Nobody can serve this now; the only retryable error. `retry_after_s` becomes RetryInfo."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_s: float = 0.5, **metadata: object
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ForebayError):
    """The request's latency budget is spent."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class ConfigError(ForebayError):
    """A configuration key or value is wrong; raised at start, before anything listens."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CONFIG"


def suggest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
