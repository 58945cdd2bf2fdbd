"""Generations to answers: whole, or as server-sent events while they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from forebay.v1.common_pb2 import TokenLogprobs
from forebay.v1.inference_pb2 import Usage

from ..generation import Generation
from ..request import Piece
from .exchange import DONE, Exchange, sse
from .shapes import REASONS, Choice, Shape

REQUEST_ID_HEADER = "x-request-id"
# Stands for a chunk's text until there is one; no name or id has it.
_MARK = "\0"


async def pieces_of(generations: Sequence[Generation]) -> AsyncIterator[Piece]:
    """Pieces as they come, their choices counted over all prompts; closing is up to the caller."""
    if len(generations) == 1:
        async for piece in generations[0].pieces():
            yield piece
        return
    async for prompt, piece in _merged([generation.pieces() for generation in generations]):
        piece.choice += prompt * generations[0].request.params.n
        yield piece


async def _merged(streams: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[tuple[int, Piece]]:
    """(number of the stream, its piece) in the order of arrival."""
    pending = {_next(stream): number for number, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number, piece = pending.pop(task), task.result()
                if piece is not None:
                    pending[_next(streams[number])] = number
                    yield number, piece
    finally:
        for task in pending:
            task.cancel()


def _next(stream: AsyncIterator[Piece]) -> asyncio.Future[Piece | None]:
    async def step() -> Piece | None:
        return await anext(stream, None)

    return asyncio.ensure_future(step())


async def answer_whole(pieces: AsyncIterator[Piece], shape: Shape, exchange: Exchange, name: str) -> None:
    """Collect all choices, then answer."""
    texts: list[list[str]] = [[] for _ in range(shape.num_choices)]
    entries: list[list[TokenLogprobs]] = [[] for _ in texts]
    reasons = [0] * len(texts)
    total = Usage()
    async for piece in pieces:
        texts[piece.choice].append(piece.text)
        entries[piece.choice].extend(piece.logprobs)
        reasons[piece.choice] = piece.finish_reason
        _add(total, piece.usage)
    choices = [
        _finished(shape, index, shape.choice(index, "".join(text)), entries[index], reasons[index])
        for index, text in enumerate(texts)
    ]
    await exchange.answer(200, shape.whole(choices, _usage(total)), {REQUEST_ID_HEADER: name})


async def answer_stream(
    pieces: AsyncIterator[Piece], shape: Shape, exchange: Exchange, name: str, with_usage: bool
) -> None:
    """Headers leave with the first piece, so that what fails before it still has its status."""
    total, events = Usage(), _Events(shape)
    async for piece in pieces:
        if not exchange.is_answered:
            await exchange.start_stream({REQUEST_ID_HEADER: name})
            await exchange.write(events.openings())
        _add(total, piece.usage)
        if event := events.of(piece):
            await exchange.write(event)
    if with_usage:
        await exchange.event(shape.chunk([], _usage(total)))
    await exchange.write(DONE, is_last=True)


class _Events:
    """Chunks as bytes. Most have nothing but text: for those all but the text is encoded once a choice."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def openings(self) -> bytes:
        """What the choices begin with."""
        shape = self._shape
        choices = [shape.opening(index) for index in range(shape.num_choices)]
        return b"".join(sse(shape.chunk([choice])) for choice in choices if choice is not None)

    def of(self, piece: Piece) -> bytes:
        """Nothing for a piece without news, as one of incomplete UTF-8."""
        if piece.logprobs or piece.finish_reason:
            choice = self._shape.delta(piece.choice, piece.text)
            choice = _finished(self._shape, piece.choice, choice, piece.logprobs, piece.finish_reason)
            return sse(self._shape.chunk([choice]))
        if not piece.text:
            return b""
        before, after = self._frames.get(piece.choice) or self._frame(piece.choice)
        return before + json.dumps(piece.text).encode() + after

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        event = sse(self._shape.chunk([self._shape.delta(index, _MARK)]))
        before, after = event.split(json.dumps(_MARK).encode())
        self._frames[index] = before, after
        return before, after


def _finished(
    shape: Shape, index: int, choice: Choice, entries: Sequence[TokenLogprobs], reason: int
) -> Choice:
    if entries:
        choice["logprobs"] = shape.logprobs(index, entries)
    choice["finish_reason"] = REASONS.get(reason)  # type: ignore[call-overload]
    return choice


def _add(total: Usage, usage: Usage | None) -> None:
    """Several prompts add up."""
    if usage is not None:
        total.prompt_tokens += usage.prompt_tokens
        total.completion_tokens += usage.completion_tokens
        total.cached_tokens += usage.cached_tokens


def _usage(total: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
    }
