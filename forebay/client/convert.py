"""From protobuf messages to the client's dataclasses; fields have the same names on both sides."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from forebay.client import types
from forebay.types import FinishReason
from forebay.v1 import admin_pb2, common_pb2
from forebay.v1 import inference_pb2 as pb

T = TypeVar("T")
Piece = pb.GenerateResponse | pb.ChatResponse


def to_delta(piece: Piece) -> types.Delta:
    """A message of a stream; written out, because it runs for every token."""
    return types.Delta(
        choice=piece.choice,
        token_ids=tuple(piece.token_ids),
        text=piece.text,
        logprobs=tuple(map(_to_logprobs, piece.logprobs)) if piece.logprobs else (),
        finish_reason=FinishReason(piece.finish_reason).name.lower() if piece.finish_reason else None,
        usage=to_usage(piece.usage) if piece.HasField("usage") else None,
        receipt=to_receipt(piece.receipt) if piece.HasField("receipt") else None,
        request_id=piece.request_id,
    )


def _to_logprobs(entry: common_pb2.TokenLogprobs) -> types.TokenLogprobs:
    return _same(types.TokenLogprobs, entry)


def to_usage(usage: pb.Usage) -> types.Usage:
    """Token counts."""
    return _same(types.Usage, usage)


def to_receipt(receipt: pb.Receipt) -> types.Receipt:
    """A receipt with its stages and placement."""
    nested = {
        "stages": tuple(_same(types.Stage, stage) for stage in receipt.stages),
        "placement": _same(types.Placement, receipt.placement),
    }
    return _same(types.Receipt, receipt, nested)


def to_story(story: pb.ExplainResponse) -> types.Story:
    """What happened to a request."""
    nested = {"receipt": to_receipt(story.receipt), "usage": to_usage(story.usage)}
    return _same(types.Story, story, nested)


def to_model(info: common_pb2.ModelInfo) -> types.Model:
    """A served model."""
    return _same(types.Model, info)


def to_fleet(answer: admin_pb2.ListWorkersResponse) -> types.Fleet:
    """Workers and traffic."""
    workers = tuple(_same(types.Worker, w, {"load": _same(types.Load, w.load)}) for w in answer.workers)
    return types.Fleet(workers, _same(types.Traffic, answer.traffic))


def _same(kind: type[T], message: Message, nested: Mapping[str, object] | None = None) -> T:
    nested = nested or {}
    plain = {
        name: _plain(getattr(message, name)) for name in _names(cast(Hashable, kind)) if name not in nested
    }
    return kind(**plain, **nested)


@functools.cache
def _names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cast(Any, kind)))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, bytes, int, float)) else tuple(value)
