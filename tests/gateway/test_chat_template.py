"""Templates render as transformers renders them, and fail as the caller's error."""

import datetime
import json

import pytest

from forebay.errors import FailedPrecondition, InvalidArgument, UnsupportedModel
from forebay.model.hub import resolve_model
from gateway.chat_template import ChatTemplate, need_template

USER = [{"role": "user", "content": "hi\n  there"}]
LIMIT = 10_000


async def test_same_as_transformers():
    from transformers import AutoTokenizer

    folder = resolve_model("demo")
    template = ChatTemplate.from_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    for messages in (
        USER,
        [{"role": "system", "content": "s"}, *USER, {"role": "assistant", "content": "é"}, *USER],
    ):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert await template.render(messages, LIMIT) == expected


@pytest.mark.parametrize(
    "source, expected",
    [
        (
            "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}",
            "hi\n  there\n",
        ),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages | tojson }}", json.dumps(USER)),
        ("{{ {'a': '<é>'} | tojson(indent=2) }}", '{\n  "a": "<é>"\n}'),
        ("{% for m in messages %}{% break %}{% endfor %}x", "x"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{{ strftime_now('%Y') }}", str(datetime.datetime.now().year)),
        ("{% if tools %}tools{% endif %}{{ add_generation_prompt }}", "True"),
    ],
)
async def test_dialect(source, expected):
    assert (
        await ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(USER, LIMIT) == expected
    )


@pytest.mark.parametrize(
    "source, words",
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses"),
        ("{{ messages[7].content.x }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% for i in range(1000000) %}x{% endfor %}", "refuses"),
        ("{% for i in range(90000) %}xxxxxxxx{% endfor %}", "too long"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses"),
    ],
)
async def test_failures_are_the_callers(source, words):
    with pytest.raises(InvalidArgument, match=words):
        await ChatTemplate(source).render(USER, LIMIT)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"chat_template": "one"}, "one"),
        (
            {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]},
            "d",
        ),
    ],
)
async def test_sources(tmp_path, config, expected):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert await ChatTemplate.from_folder(tmp_path).render(USER, LIMIT) == expected
    (tmp_path / "chat_template.jinja").write_text("file")
    assert await ChatTemplate.from_folder(tmp_path).render(USER, LIMIT) == "file"


def test_broken_template():
    with pytest.raises(UnsupportedModel, match="not valid"):
        ChatTemplate("{% for %}")


def test_no_template(tmp_path):
    assert ChatTemplate.from_folder(tmp_path) is None
    with pytest.raises(FailedPrecondition, match="use Generate"):
        need_template(None, "base")
