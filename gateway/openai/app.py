"""Routes of the HTTP port, and the life of one request there: whoever leaves stops their work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from forebay.errors import ForebayError, InvalidArgument, NotFound, Unavailable
from forebay.rpc.channel import MAX_PUBLIC_MESSAGE_BYTES

from ..engine import Engine
from ..generation import Generation
from ..intake import Intake
from ..models import ServedModel
from .answers import answer_stream, answer_whole, pieces_of
from .calls import Call, read_chat, read_completion
from .errors import to_http
from .exchange import Exchange
from .fields import Fields
from .shapes import ChatShape, CompletionShape, Shape

log = structlog.get_logger(__name__)
BODY_TIMEOUT_S = STALL_S = 30.0
MODELS_PATH = "/v1/models"
OWNER = "forebay"


class App:
    """An ASGI application over the gateway's intake and engine."""

    def __init__(self, engine: Engine, intake: Intake, started: int) -> None:
        self._engine, self._intake, self._started = engine, intake, started
        self._running: set[asyncio.Task[None]] = set()
        self._posts: dict[str, Callable[[Exchange, Fields], Coroutine[Any, Any, None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
        }

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One request; the server speaks no other protocol."""
        assert scope["type"] == "http"
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except ForebayError as error:
            status, headers, body = to_http(error)
            log.info("http_error", path=exchange.path, status=status, reason=error.reason)
            await exchange.fail(status, body, headers)

    async def close(self) -> None:
        """End what still runs; its clients hear that the gateway stops."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path.rstrip("/")
        if path in self._posts:
            _need_method(exchange, "POST")
            body = Fields.parse(await exchange.read(MAX_PUBLIC_MESSAGE_BYTES, BODY_TIMEOUT_S))
            await self._while_there(exchange, self._posts[path](exchange, body))
        elif path in ("/health", MODELS_PATH) or path.startswith(f"{MODELS_PATH}/"):
            _need_method(exchange, "GET")
            await self._get(exchange, path)
        else:
            known = ", ".join([*self._posts, MODELS_PATH, "/health"])
            raise NotFound(f"no {exchange.path[:128]!r} here; there are {known}", reason="UNKNOWN_PATH")

    async def _while_there(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends, the client leaves, or reads nothing for long."""
        task, gone = asyncio.create_task(work), asyncio.create_task(exchange.gone())
        self._running.add(task)
        try:
            while not exchange.is_stalled():
                if (await asyncio.wait([task, gone], timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED))[
                    0
                ]:
                    break
            is_left = not task.done()
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._running.discard(task)
        if not is_left and (error := _failure(task, exchange.path)) is not None:
            raise error

    async def _get(self, exchange: Exchange, path: str) -> None:
        models = self._engine.models.served(self._engine.workers.is_served)
        if path == "/health":
            await exchange.answer(*((200, {"status": "ok"}) if models else (503, {"status": "no worker"})))
        elif path == MODELS_PATH:
            await exchange.answer(200, {"object": "list", "data": [self._model(m) for m in models]})
        else:
            name = path.removeprefix(f"{MODELS_PATH}/")
            found = self._engine.models.find(name, self._engine.workers.is_served)
            await exchange.answer(200, self._model(found))

    def _model(self, model: ServedModel) -> dict[str, Any]:
        context = {"max_model_len": model.info.max_context}
        return {"id": model.name, "object": "model", "created": self._started, "owned_by": OWNER} | context

    async def _chat(self, exchange: Exchange, body: Fields) -> None:
        call = await read_chat(body, self._intake)
        await self._answer(exchange, call, ChatShape(call.requests))

    async def _complete(self, exchange: Exchange, body: Fields) -> None:
        call = await read_completion(body, self._intake)
        await self._answer(exchange, call, CompletionShape(call.requests))

    async def _answer(self, exchange: Exchange, call: Call, shape: Shape) -> None:
        """Every generation that was opened is closed, however this ends."""
        generations: list[Generation] = []
        name = call.requests[0].request_id
        try:
            for request in call.requests:
                generations.append(self._engine.open(request))
            for generation in generations:
                await self._engine.place(generation, None)
            if call.is_stream:
                await answer_stream(pieces_of(generations), shape, exchange, name, call.with_usage)
            else:
                await answer_whole(pieces_of(generations), shape, exchange, name)
        finally:
            for generation in generations:
                generation.close()


def _need_method(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        what = f"{exchange.path} wants {method}"
        raise InvalidArgument(what, field="method", got=exchange.method[:16], reason="METHOD_NOT_ALLOWED")


def _failure(task: asyncio.Task[None], path: str) -> ForebayError | None:
    """What is no platform error is a defect: its words stay in the log."""
    if task.cancelled():
        return Unavailable("the gateway is stopping", reason="STOPPING")
    error = task.exception()
    if error is None or isinstance(error, ForebayError):
        return error
    log.error("internal_error", path=path, exc_info=error)
    return ForebayError("internal error; the server's log has the details")
