"""The model's own chat template, rendered as transformers does, in a sandbox, off the event loop.

Source: `apply_chat_template` of transformers 5 (environment, filters, globals, special-token names).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox

from forebay.errors import FailedPrecondition, InvalidArgument, UnsupportedModel

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What model-written template code may raise on a conversation that it does not expect.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


class ChatTemplate:
    """One compiled template with the names of the model's special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UnsupportedModel(f"the model's chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The folder's template, or None for a model without one."""
        config_path, jinja_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        config = json.loads(config_path.read_text()) if config_path.is_file() else {}
        source = jinja_path.read_text() if jinja_path.is_file() else _default(config.get("chat_template"))
        special_tokens = {name: _content(config[name]) for name in SPECIAL_NAMES if config.get(name)}
        return cls(source, special_tokens) if source else None

    async def render(self, messages: Sequence[Mapping[str, str]], max_bytes: int) -> str:
        """The prompt up to where the assistant begins; raises InvalidArgument with the template's words."""
        return await asyncio.to_thread(self._render, messages, max_bytes)

    def _render(self, messages: Sequence[Mapping[str, str]], max_bytes: int) -> str:
        variables = {
            **self._special_tokens,
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": True,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(tools=None, documents=None, **variables):
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    what = "the conversation is too long"
                    raise InvalidArgument(
                        what, field="messages", limit=f"{max_bytes} bytes", got=f"over {size}"
                    )
        except TEMPLATE_ERRORS as error:
            raise InvalidArgument(f"the chat template refuses: {error}", field="messages") from error
        return "".join(pieces)


def need_template(template: ChatTemplate | None, model: str) -> ChatTemplate:
    """The template, or the error that says what to use instead."""
    if template is None:
        raise FailedPrecondition(
            f"model {model!r} has no chat template; use Generate", reason="NO_CHAT_TEMPLATE"
        )
    return template


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body's nodes."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: jinja's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _default(template: str | Sequence[Mapping[str, str]] | None) -> str | None:
    """Old folders may list several named templates."""
    if template is None or isinstance(template, str):
        return template
    return next((entry["template"] for entry in template if entry["name"] == "default"), None)
