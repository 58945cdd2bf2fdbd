"""From protobuf to a checked request: everything cheap is refused before anything is spent."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

import structlog

from forebay.errors import InvalidArgument
from forebay.limits import (
    check_messages,
    check_request_id,
    check_stop,
    check_text,
    check_token_ids,
    fit_context,
    max_prompt_bytes,
    sampling_from_pb,
)
from forebay.types import SamplingParams
from forebay.v1 import inference_pb2 as pb

from .chat_template import need_template
from .models import Models, ServedModel
from .receipt import Timeline
from .request import Request

log = structlog.get_logger(__name__)
_Message = pb.GenerateRequest | pb.ChatRequest | pb.TokenizeRequest | pb.DetokenizeRequest


class Intake:
    """Finds the model, checks against the limits, tokenises."""

    def __init__(self, models: Models, is_served: Callable[[bytes], bool]) -> None:
        self._models, self._is_served = models, is_served

    def model(self, message: _Message) -> ServedModel:
        """The model that the message names, or the only one."""
        return self._models.find(message.model if message.HasField("model") else None, self._is_served)

    async def generate(self, message: pb.GenerateRequest) -> Request:
        """A request from a text or from token ids."""
        timeline = Timeline()
        model = self.model(message)
        params, stop, request_id = _check(message, model)
        kind = message.WhichOneof("prompt")
        if kind is None:
            raise InvalidArgument("text or token_ids must be given", field="prompt")
        if kind == "text":
            token_ids = await self._tokenize(model, message.text)
        else:
            token_ids = list(message.token_ids.ids)
        check_token_ids(token_ids, model.info.vocab_size, model.info.max_context)
        return Request(
            request_id=request_id,
            operation="text_completion",
            model=model,
            token_ids=token_ids,
            params=_finish(params, token_ids, model),
            stop=stop,
            text_output=message.text_output if message.HasField("text_output") else True,
            keep_special_tokens=message.keep_special_tokens,
            timeline=timeline.mark("tokenized"),
        )

    async def chat(self, message: pb.ChatRequest) -> Request:
        """A request from a conversation, through the model's template."""
        timeline = Timeline()
        model = self.model(message)
        params, stop, request_id = _check(message, model)
        check_messages([m.role for m in message.messages])
        template, max_bytes = (
            need_template(model.template, model.name),
            max_prompt_bytes(model.info.max_context),
        )
        messages = [{"role": m.role, "content": m.content} for m in message.messages]
        token_ids = await model.tokenizer.encode(await template.render(messages, max_bytes))
        check_token_ids(token_ids, model.info.vocab_size, model.info.max_context)
        return Request(
            request_id=request_id,
            operation="chat",
            model=model,
            token_ids=token_ids,
            params=_finish(params, token_ids, model),
            stop=stop,
            timeline=timeline.mark("tokenized"),
        )

    async def tokenize(self, message: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Ids and spellings; an empty text has none."""
        model = self.model(message)
        token_ids = await self._tokenize(model, message.text) if message.text else []
        return pb.TokenizeResponse(token_ids=token_ids, tokens=model.tokenizer.spell(token_ids))

    async def detokenize(self, message: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Text, special tokens included; no ids have none."""
        model = self.model(message)
        if not message.token_ids:
            return pb.DetokenizeResponse()
        check_token_ids(message.token_ids, model.info.vocab_size, len(message.token_ids) + 1)
        return pb.DetokenizeResponse(text=await model.tokenizer.decode(message.token_ids))

    async def _tokenize(self, model: ServedModel, text: str) -> list[int]:
        check_text(text, max_prompt_bytes(model.info.max_context), "prompt.text")
        return await model.tokenizer.encode(text)


def _check(
    message: pb.GenerateRequest | pb.ChatRequest, model: ServedModel
) -> tuple[SamplingParams, tuple[str, ...], str]:
    """(sampling, stop strings, internal request id)."""
    params = sampling_from_pb(message.sampling, model.info.vocab_size)
    if not message.sampling.HasField("seed"):
        params = replace(params, seed=secrets.randbits(64))
    stop = check_stop(message.stop)
    # The id that workers see is always ours: two callers may choose the same name.
    request_id = secrets.token_hex(8)
    if message.HasField("request_id"):
        log.info("request_named", request_id=request_id, name=check_request_id(message.request_id))
    return params, stop, request_id


def _finish(params: SamplingParams, token_ids: list[int], model: ServedModel) -> SamplingParams:
    return fit_context(len(token_ids), params, model.info.max_context)
