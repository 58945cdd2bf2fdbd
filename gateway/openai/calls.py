"""From a JSON body to checked requests; one completion call may have several prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forebay.errors import InvalidArgument
from forebay.v1 import inference_pb2 as pb

from ..intake import Intake
from ..request import Request
from .fields import Fields, unsigned, wrong_type
from .sampling import chat_sampling, completion_sampling, refuse_unsupported

MAX_PROMPTS = 128
# "developer" is OpenAI's newer name.
ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Call:
    """What a caller asked for: requests in the order of its prompts, and how to answer."""

    requests: list[Request]
    is_stream: bool
    with_usage: bool


async def read_chat(body: Fields, intake: Intake) -> Call:
    """/v1/chat/completions."""
    refuse_unsupported(body)
    message = pb.ChatRequest(
        model=body.text("model"),
        messages=[_message(entry) for entry in body.objects("messages")],
        sampling=chat_sampling(body),
        stop=body.texts("stop"),
    )
    request = await intake.chat(message)
    request.keep_special_tokens = body.get("skip_special_tokens") is False
    return _call(body, [request])


async def read_completion(body: Fields, intake: Intake) -> Call:
    """/v1/completions."""
    refuse_unsupported(body)
    message = pb.GenerateRequest(
        model=body.text("model"),
        sampling=completion_sampling(body),
        stop=body.texts("stop"),
        keep_special_tokens=body.get("skip_special_tokens") is False,
    )
    requests = []
    for prompt in _prompts(body.get("prompt")):
        if isinstance(prompt, str):
            message.text = prompt
        else:
            message.token_ids.CopyFrom(pb.TokenIds(ids=prompt))
        requests.append(await intake.generate(message))
    return _call(body, requests)


def _call(body: Fields, requests: list[Request]) -> Call:
    is_stream, options = body.flag("stream"), body.nested("stream_options")
    if options.names() and not is_stream:
        raise InvalidArgument("needs stream to be true", field="stream_options")
    return Call(requests, is_stream, options.flag("include_usage"))


def _prompts(value: Any) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if value is None or not isinstance(value, list):
        raise wrong_type("prompt", "a string or a list", value)
    if all(isinstance(entry, (int, float)) for entry in value):
        return [unsigned(value, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise InvalidArgument("too many prompts", field="prompt", limit=MAX_PROMPTS, got=len(value))
    return [_prompt(entry) for entry in value]


def _prompt(entry: Any) -> str | list[int]:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, list):
        raise wrong_type("prompt", "a list of strings or of lists of token ids", entry)
    return unsigned(entry, "prompt")


def _message(entry: Fields) -> pb.ChatMessage:
    if entry.get("tool_calls"):
        raise entry.error("tool_calls", "is not supported by this server", reason="UNSUPPORTED_FIELD")
    role = entry.text("role") or ""
    return pb.ChatMessage(role=ROLES.get(role, role), content=_content(entry))


def _content(entry: Fields) -> str:
    """A text, or parts of type text, joined by line ends as vLLM does for templates that take a text."""
    content = entry.get("content")
    if content is None and entry.get("role") == "assistant":
        return ""
    if not isinstance(content, list):
        text = entry.text("content")
        if text is None:
            raise entry.error("content", "must be given")
        return text
    parts = entry.objects("content")
    for part in parts:
        if part.get("type") not in ("text", "refusal"):
            raise part.error("type", "only text is supported", reason="UNSUPPORTED_FIELD")
    return "\n".join(part.text(str(part.get("type"))) or "" for part in parts)
