"""The Python client: `Forebay` and, for asyncio, `AsyncForebay`.

    with Forebay("127.0.0.1:50051") as client:
        for delta in client.generate("Once upon a time", max_tokens=40):
            print(delta.text, end="", flush=True)

Every call has a deadline. Failures are `CallError`s with the reason, a hint and, where waiting helps, how
long to wait. What is UNAVAILABLE before the first token is tried again; afterwards never, so that no token
comes twice.
"""

from __future__ import annotations

from forebay.client.aio import AsyncForebay, AsyncStream
from forebay.client.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    ServiceUnavailable,
    UnknownName,
)
from forebay.client.requests import Message, Sampling
from forebay.client.retry import RetryPolicy
from forebay.client.sync import Forebay, Stream
from forebay.client.types import (
    Choice,
    Completion,
    Delta,
    Fleet,
    Load,
    Model,
    Placement,
    Receipt,
    Stage,
    Story,
    TokenLogprobs,
    Tokens,
    Traffic,
    Usage,
    Worker,
)

__all__ = [
    "AsyncForebay",
    "AsyncStream",
    "CallError",
    "Cancelled",
    "Choice",
    "Completion",
    "DeadlineExceeded",
    "Delta",
    "Fleet",
    "Forebay",
    "InternalError",
    "InvalidRequest",
    "Load",
    "Message",
    "Model",
    "Overloaded",
    "Placement",
    "Receipt",
    "RetryPolicy",
    "Sampling",
    "ServiceUnavailable",
    "Stage",
    "Story",
    "Stream",
    "TokenLogprobs",
    "Tokens",
    "Traffic",
    "UnknownName",
    "Usage",
    "Worker",
]
