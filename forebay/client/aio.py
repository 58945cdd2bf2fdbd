"""The asynchronous client: the same methods as the synchronous one, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.client import convert, requests
from forebay.client.errors import Cancelled, to_error
from forebay.client.requests import Message, Prompt, Sampling
from forebay.client.retry import DEFAULT_TIMEOUT_S, UNARY_TIMEOUT_S, Attempts, RetryPolicy
from forebay.client.sync import CHANNEL_ARGS, DEFAULT_ADDRESS
from forebay.client.types import Completion, Delta, Fleet, Model, Story, Tokens
from forebay.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb


class AsyncStream:
    """Asynchronous iterator over the deltas of one request; leaving its `async with` block, or `close`,
    cancels the request."""

    def __init__(self, method: Any, request: ProtoMessage, attempts: Attempts, address: str) -> None:
        self._method, self._request = method, request
        self._attempts, self._address = attempts, address
        self._call: Any = None
        self._is_closed = False
        self._deltas = self._run()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    async def collect(self) -> Completion:
        """All that is left of the stream."""
        completion = Completion()
        async for delta in self:
            completion.add(delta)
        return completion

    async def _run(self) -> AsyncIterator[Delta]:
        num_deltas = 0
        while True:
            self._call = self._method(self._request, timeout=self._attempts.left_s)
            try:
                async for piece in self._call:
                    num_deltas += 1
                    yield convert.to_delta(piece)
                return
            except grpc.RpcError as error:
                failure = to_error(error, self._address)
                if num_deltas:
                    raise failure from error
                await asyncio.sleep(self._attempts.next_delay_s(failure))
            except asyncio.CancelledError as error:
                # grpc.aio says the same of a closed call and of a cancelled task.
                if not self._is_closed:
                    raise
                raise Cancelled("the stream was closed", code=grpc.StatusCode.CANCELLED) from error
            finally:
                self._call.cancel()


class AsyncForebay:
    """A connection to one gateway; an asynchronous context manager. Belongs to one event loop.

    `timeout_s` is the deadline of generate and chat, `unary_timeout_s` that of everything else; each call can
    have its own.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        unary_timeout_s: float = UNARY_TIMEOUT_S,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.address = address
        self._timeout_s, self._unary_timeout_s = timeout_s, unary_timeout_s
        self._retry = retry or RetryPolicy()
        self._channel = grpc.aio.insecure_channel(address, CHANNEL_ARGS)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and all calls on it."""
        await self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        stop: Sequence[str] = (),
        request_id: str | None = None,
        text_output: bool | None = None,
        keep_special_tokens: bool | None = None,
        timeout_s: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """Continue a prompt, a text or token ids; `async for` over the result, or `await collect()`."""
        request = requests.generate_request(
            prompt,
            model,
            stop,
            request_id,
            sampling,
            text_output=text_output,
            keep_special_tokens=keep_special_tokens,
        )
        return self._open(self._stub.Generate, request, timeout_s)

    def chat(
        self,
        messages: Iterable[Message],
        *,
        model: str | None = None,
        stop: Sequence[str] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """Answer a conversation, oldest message first, through the model's template."""
        request = requests.chat_request(messages, model, stop, request_id, sampling)
        return self._open(self._stub.Chat, request, timeout_s)

    async def tokenize(
        self, text: str, *, model: str | None = None, timeout_s: float | None = None
    ) -> Tokens:
        """Token ids of a text, with their spelling."""
        answer = await self._ask(self._stub.Tokenize, requests.tokenize_request(text, model), timeout_s)
        return Tokens(tuple(answer.token_ids), tuple(answer.tokens))

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str | None = None, timeout_s: float | None = None
    ) -> str:
        """Text of token ids."""
        request = requests.detokenize_request(token_ids, model)
        return str((await self._ask(self._stub.Detokenize, request, timeout_s)).text)

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """All served models, by name."""
        answer = await self._ask(self._stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return [convert.to_model(info) for info in answer.models]

    async def explain(self, request_id: str, *, timeout_s: float | None = None) -> Story:
        """What happened to a request that ended a while ago; UnknownName once it is forgotten."""
        request = pb.ExplainRequest(request_id=request_id)
        return convert.to_story(await self._ask(self._stub.Explain, request, timeout_s))

    async def fleet(self, *, timeout_s: float | None = None) -> Fleet:
        """The gateway's workers with their load, and its traffic."""
        answer = await self._ask(self._admin.ListWorkers, admin_pb2.ListWorkersRequest(), timeout_s)
        return convert.to_fleet(answer)

    async def health(self, service: str = "", *, timeout_s: float = 5.0) -> str:
        """Health state of a service by its full gRPC name, "" for the process: "SERVING" or another word."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self._ask(self._health.Check, request, timeout_s, RetryPolicy(max_attempts=1))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def _open(self, method: Any, request: ProtoMessage, timeout_s: float | None) -> AsyncStream:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return AsyncStream(method, request, Attempts(self._retry, timeout_s), self.address)

    async def _ask(
        self,
        method: Callable[..., Any],
        request: ProtoMessage,
        timeout_s: float | None,
        retry: RetryPolicy | None = None,
    ) -> Any:
        timeout_s = self._unary_timeout_s if timeout_s is None else timeout_s
        attempts = Attempts(retry or self._retry, timeout_s)
        while True:
            try:
                return await method(request, timeout=attempts.left_s)
            except grpc.RpcError as error:
                failure = to_error(error, self.address)
                await asyncio.sleep(attempts.next_delay_s(failure))
