"""Calls to a gateway for the command line: requests from options, answers collected, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from forebay.errors import ForebayError
from forebay.rpc.channel import MAX_MESSAGE_BYTES
from forebay.types import FinishReason
from forebay.v1 import common_pb2, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb

Piece = pb.GenerateResponse | pb.ChatResponse


class RemoteError(ForebayError):
    """What a gateway answered instead, for a person to read."""

    reason = "REMOTE"


class Client:
    """A connection to one gateway; every failure is a RemoteError."""

    def __init__(self, address: str, timeout_s: float | None = None) -> None:
        self._address, self._timeout_s = address, timeout_s
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self._channel = grpc.insecure_channel(address, options)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def generate(self, request: pb.GenerateRequest) -> Iterator[Piece]:
        """Pieces of a completion; leaving the iterator early cancels the request."""
        return self._stream(self._stub.Generate, request)

    def chat(self, request: pb.ChatRequest) -> Iterator[Piece]:
        """Pieces of an answer; leaving the iterator early cancels the request."""
        return self._stream(self._stub.Chat, request)

    def models(self) -> list[common_pb2.ModelInfo]:
        """All served models."""
        try:
            return list(self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s or 10).models)
        except grpc.RpcError as error:
            raise RemoteError(self._describe(error)) from error

    def _stream(self, method: Any, request: Message) -> Iterator[Piece]:
        call = method(request, timeout=self._timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise RemoteError(self._describe(error)) from error
        finally:
            call.cancel()

    def _describe(self, error: grpc.RpcError) -> str:
        code, details = error.code(), error.details() or ""
        reason = _reason(error)
        if code is grpc.StatusCode.UNAVAILABLE and not reason:
            return f"no gateway answers at {self._address}; `forebay up` starts one"
        return f"{code.name}: {details}" + (f" [{reason}]" if reason else "")


def health_of(address: str, service: str, timeout_s: float = 5.0) -> str:
    """Name of the health state; raises RemoteError if nothing answers."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            state = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s).status
        except grpc.RpcError as error:
            raise RemoteError(f"{address}: {error.code().name}: {error.details()}") from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(state))


def _reason(error: grpc.RpcError) -> str:
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return str(info.reason)
    return ""


@dataclass
class Choice:
    """One completion so far."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Answer:
    """All choices of a request, with what came on its last message."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: pb.Usage | None = None
    receipt: pb.Receipt | None = None

    def add(self, piece: Piece) -> None:
        """Append one message of the stream."""
        choice = self.choices.setdefault(piece.choice, Choice())
        choice.token_ids += piece.token_ids
        choice.text += piece.text
        choice.logprobs += map(to_dict, piece.logprobs)
        if piece.finish_reason:
            choice.finish_reason = FinishReason(piece.finish_reason).name.lower()
        if piece.HasField("usage"):
            self.usage = piece.usage
        if piece.HasField("receipt"):
            self.receipt = piece.receipt

    def to_json(self, *, with_logprobs: bool = False) -> dict[str, Any]:
        """Choice 0 at the top level; all of them under "choices" if there are several."""
        choices = [self._choice(choice, with_logprobs) for _, choice in sorted(self.choices.items())]
        result = dict(choices[0]) if choices else self._choice(Choice(), with_logprobs)
        result["usage"] = to_dict(self.usage) if self.usage else None
        result["receipt"] = to_dict(self.receipt) if self.receipt else None
        return result | ({"choices": choices} if len(choices) > 1 else {})

    @staticmethod
    def _choice(choice: Choice, with_logprobs: bool) -> dict[str, Any]:
        fields = {"token_ids": choice.token_ids, "text": choice.text, "finish_reason": choice.finish_reason}
        return fields | ({"logprobs": choice.logprobs} if with_logprobs else {})


def to_dict(message: Message) -> dict[str, Any]:
    """Every field under its proto name, numbers as numbers."""
    return {field.name: _plain(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return to_dict(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, (str, int, float)) else [_plain(item) for item in value]
