"""Platform errors in OpenAI's shape: the one place where they become HTTP statuses."""

from __future__ import annotations

import math
from typing import Any

from grpc import StatusCode

from forebay.errors import ForebayError, Unavailable

HTTP_STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
HTTP_STATUS_OF_REASON = {
    "MODEL_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TIMEOUT": 408,
    "BODY_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
}
TYPES = {429: "rate_limit_error", 503: "service_unavailable_error", 504: "timeout_error"}
# The platform's names of fields -> this dialect's.
PARAMS = {"prompt.text": "prompt", "token_ids": "prompt", "messages.role": "messages"}


def to_http(error: ForebayError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """(status, extra headers, body)."""
    status = HTTP_STATUS_OF_REASON.get(error.reason) or HTTP_STATUS.get(error.status, 500)
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return status, headers, {"error": to_body(error, status)}


def to_body(error: ForebayError, status: int) -> dict[str, Any]:
    """OpenAI's error object; `code` is the reason in lower case."""
    field = error.metadata.get("field", "")
    param = PARAMS.get(field, field.removeprefix("sampling.")) or None
    message = error.message
    if param is not None and message.startswith(f"{field}: "):
        message = param + message.removeprefix(field)
    if param is None and error.reason == "MODEL_NOT_FOUND":
        param = "model"
    kind = "server_error" if status == 500 else TYPES.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": error.reason.lower()}
