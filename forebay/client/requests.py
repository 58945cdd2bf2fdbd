"""From Python arguments to request messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from forebay.errors import InvalidArgument
from forebay.v1 import common_pb2
from forebay.v1 import inference_pb2 as pb

Prompt = str | Sequence[int]


class Sampling(TypedDict, total=False):
    """How tokens are chosen and when they end; what is left out takes the server's default."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    n: int
    logprobs: int


class Message(TypedDict):
    """One message of a conversation; roles are "system", "user", "assistant" and "tool"."""

    role: str
    content: str


def generate_request(
    prompt: Prompt,
    model: str | None,
    stop: Sequence[str],
    request_id: str | None,
    sampling: Sampling,
    *,
    text_output: bool | None = None,
    keep_special_tokens: bool | None = None,
) -> pb.GenerateRequest:
    """A prompt as text or token ids."""
    request = pb.GenerateRequest(model=_name(model), request_id=request_id, sampling=to_sampling(sampling))
    for name, value in (("text_output", text_output), ("keep_special_tokens", keep_special_tokens)):
        if value is not None:
            setattr(request, name, value)
    request.stop.extend(_text("stop", text) for text in stop)
    if isinstance(prompt, str):
        request.text = _text("prompt", prompt)
    else:
        request.token_ids.ids.extend(_ids("prompt", prompt))
    return request


def chat_request(
    messages: Iterable[Message],
    model: str | None,
    stop: Sequence[str],
    request_id: str | None,
    sampling: Sampling,
) -> pb.ChatRequest:
    """A conversation, oldest message first."""
    request = pb.ChatRequest(model=_name(model), request_id=request_id, sampling=to_sampling(sampling))
    request.stop.extend(_text("stop", text) for text in stop)
    for message in messages:
        request.messages.add(
            role=_text("role", message["role"]), content=_text("content", message["content"])
        )
    return request


def to_sampling(sampling: Sampling) -> common_pb2.SamplingParams:
    """The message; raises InvalidArgument for a name or a value that it cannot hold."""
    message = common_pb2.SamplingParams()
    for name, value in sampling.items():
        if name not in message.DESCRIPTOR.fields_by_name:
            raise InvalidArgument("no such sampling parameter", field=name)
        try:
            message.MergeFrom(common_pb2.SamplingParams(**{name: value}))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{value!r} is out of range", field=name) from error
    return message


def _name(model: str | None) -> str | None:
    return None if model is None else _text("model", model)


def _text(field: str, text: str) -> str:
    """`text` itself; lone surrogates are nothing that a message can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"not valid Unicode at character {error.start}", field=field) from error
    return text


def _ids(field: str, token_ids: Sequence[int]) -> Sequence[int]:
    for token_id in token_ids:
        if not 0 <= token_id < 2**32:
            raise InvalidArgument(f"{token_id} is not a token id", field=field)
    return token_ids


def tokenize_request(text: str, model: str | None) -> pb.TokenizeRequest:
    """A text to tokenise."""
    return pb.TokenizeRequest(model=_name(model), text=_text("text", text))


def detokenize_request(token_ids: Sequence[int], model: str | None) -> pb.DetokenizeRequest:
    """Tokens to spell."""
    return pb.DetokenizeRequest(model=_name(model), token_ids=_ids("token_ids", token_ids))
