"""OpenAI's sampling fields, and vLLM's extra ones, as the platform's own; what is not served is refused.

Fields that are not known are ignored, as vLLM does: clients send many that change nothing here (`user`,
`store`, `metadata`). Known fields whose effect is not implemented are refused unless they ask for nothing.
"""

from __future__ import annotations

from typing import Any

from forebay.errors import InvalidArgument
from forebay.v1.common_pb2 import SamplingParams

from .fields import SEEDS, Fields

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
COUNTS = ("n", "max_tokens", "min_tokens")
DEFAULT_MAX_COMPLETION_TOKENS = 16
# Field -> values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "logits_processors": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "prompt_embeds": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
}


def refuse_unsupported(body: Fields) -> None:
    """Raise for a field that would change the answer and is not implemented."""
    for name in UNSUPPORTED.keys() & body.names():
        if body.get(name) not in UNSUPPORTED[name]:
            raise InvalidArgument("is not supported by this server", field=name, reason="UNSUPPORTED_FIELD")


def sampling_of(body: Fields) -> SamplingParams:
    """All that both endpoints share; `logprobs` is not."""
    message = SamplingParams()
    for name in NUMBERS:
        if (number := body.number(name)) is not None:
            setattr(message, name, number)
    for name in COUNTS:
        if (count := body.integer(name)) is not None:
            setattr(message, name, count)
    if (top_k := body.integer("top_k", (-1, 2**31 - 1))) is not None:
        message.top_k = max(top_k, 0)
    if (seed := body.integer("seed", SEEDS)) is not None:
        message.seed = seed & (2**64 - 1)
    message.ignore_eos = body.flag("ignore_eos")
    message.stop_token_ids.extend(body.integers("stop_token_ids"))
    _take_bias(body, message)
    return message


def chat_sampling(body: Fields) -> SamplingParams:
    """`max_completion_tokens` replaces `max_tokens`; without either the answer may fill the context."""
    message = sampling_of(body)
    if (limit := body.integer("max_completion_tokens")) is not None:
        message.max_tokens = limit
    num_top = body.integer("top_logprobs")
    if body.flag("logprobs"):
        message.logprobs = num_top or 0
    elif num_top:
        raise InvalidArgument("needs logprobs to be true", field="top_logprobs")
    return message


def completion_sampling(body: Fields) -> SamplingParams:
    """`max_tokens` is 16 by default, as OpenAI has it."""
    message = sampling_of(body)
    if not message.HasField("max_tokens"):
        message.max_tokens = DEFAULT_MAX_COMPLETION_TOKENS
    if (num_top := body.integer("logprobs")) is not None:
        message.logprobs = num_top
    return message


def _take_bias(body: Fields, message: SamplingParams) -> None:
    """Token ids are JSON keys, hence strings."""
    bias = body.nested("logit_bias")
    for name in bias.names():
        if not (name.isascii() and name.isdigit() and int(name[:11]) < 2**32):
            raise bias.error(name[:32], "is not a token id")
        message.logit_bias[int(name)] = bias.number(name) or 0.0
