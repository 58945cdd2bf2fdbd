"""The OpenAI dialect over real HTTP, asked by the openai package, with fake workers behind the gateway."""

import openai
import pytest
from gateway_fakes import EOS, tiny_tokenizer
from openai import AsyncOpenAI

TOKENIZER = tiny_tokenizer()
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client(http_rig):
    async with AsyncOpenAI(
        base_url=f"http://{http_rig.http_address}/v1", api_key="-", max_retries=0
    ) as client:
        yield client


async def test_models(client):
    page = await client.models.list()
    assert [(model.id, model.object, model.owned_by) for model in page.data] == [("tiny", "model", "forebay")]
    assert (await client.models.retrieve("tiny")).max_model_len == 1024
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        await client.models.retrieve("tinny")


async def test_chat(client, http_rig):
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=9)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", TOKENIZER.decode([10, 11, 12, 13]))
    assert choice.finish_reason == "stop" and choice.logprobs is None and answer.object == "chat.completion"
    assert answer.usage.completion_tokens == 4 and answer.usage.prompt_tokens_details.cached_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    sent = http_rig.prefill.requests[0]
    assert sent.sampling.max_tokens == 9 and answer.id == f"chatcmpl-{sent.request_id}" and answer._request_id
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(list(sent.token_ids), skip_special_tokens=False) == text


async def test_chat_streams_with_usage(client):
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}, n=2
    )
    chunks = [chunk async for chunk in stream]
    assert [c.choices[0].delta.role for c in chunks[:2]] == ["assistant", "assistant"]
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
        assert chunk.usage is None and chunk.id == chunks[0].id
    assert texts == [TOKENIZER.decode([10, 11, 12, 13])] * 2 and reasons == ["stop", "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8


async def test_parts_and_roles(client, http_rig):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    await client.chat.completions.create(model="tiny", messages=messages)
    text = TOKENIZER.decode(list(http_rig.prefill.requests[0].token_ids), skip_special_tokens=False)
    assert "<|im_start|>system\nbe brief<|im_end|>" in text and "user\na\nb<|im_end|>" in text


async def test_chat_logprobs(client):
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, stream=False
    )
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    assert [entry.logprob for entry in content] == [-1.0, -2.0, -2.0, -2.0]
    assert bytes(content[0].bytes).decode() == content[0].token


async def test_completion(client):
    answer = await client.completions.create(model="tiny", prompt="The quick", logprobs=1)
    (choice,) = answer.choices
    assert choice.text == "".join(choice.logprobs.tokens) == TOKENIZER.decode([10, 11, 12, 13])
    assert choice.logprobs.text_offset == [0, 1, 2, 3] and answer.object == "text_completion"
    assert choice.logprobs.top_logprobs[0] == {choice.logprobs.tokens[0]: -1.0}


async def test_several_prompts_and_choices(client, http_rig):
    http_rig.prefill.first_tokens = lambda r: [20 + r.token_ids[0], 30 + r.token_ids[0]]
    http_rig.decode.script = lambda attach, choice: []
    options = {"model": "tiny", "prompt": [[5], [6], [7]], "n": 2}
    answer = await client.completions.create(**options)
    expected = [TOKENIZER.decode([first]) for first in (25, 35, 26, 36, 27, 37)]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
    texts = [""] * 6
    async for chunk in await client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


async def test_every_sampling_field_arrives(client, http_rig):
    extra = {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5, "ignore_eos": True, "min_tokens": 2}
    extra |= {"stop_token_ids": [7]}
    await client.completions.create(
        model="tiny", prompt=[50, 51], temperature=0.5, top_p=0.75, seed=-1, max_tokens=8, stop=["zz"],
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"9": -50}, extra_body=extra,
    )  # fmt: skip
    sent = http_rig.prefill.requests[0].sampling
    assert (sent.temperature, sent.top_p, sent.seed, sent.max_tokens) == (0.5, 0.75, 2**64 - 1, 8)
    assert (sent.presence_penalty, sent.frequency_penalty, dict(sent.logit_bias)) == (0.5, -0.5, {9: -50})
    assert (sent.top_k, sent.min_p, sent.repetition_penalty) == (5, 0.25, 1.5)
    assert sent.ignore_eos and sent.min_tokens == 2 and list(sent.stop_token_ids) == [7]


async def test_defaults(client, http_rig):
    await client.completions.create(model="tiny", prompt=[50])
    await client.completions.create(
        model="tiny", prompt=[50], extra_body={"top_k": -1, "user": "me", "new": 1}
    )
    assert [r.sampling.max_tokens for r in http_rig.prefill.requests] == [16, 16]
    assert http_rig.prefill.requests[1].sampling.top_k == 0


async def test_stop_string_and_special_tokens(client, http_rig):
    ids = TOKENIZER.encode("jumps over the lazy dog").ids
    http_rig.prefill.first_tokens = lambda r: ids[:1]
    http_rig.decode.script = lambda attach, choice: [*ids[1:], 11]
    answer = await client.completions.create(model="tiny", prompt="x", stop="the la")
    assert answer.choices[0].text == "jumps over " and answer.choices[0].finish_reason == "stop"
    http_rig.decode.script = lambda attach, choice: [1, EOS]
    extra = {"skip_special_tokens": False}
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, extra_body=extra)
    assert answer.choices[0].message.content == TOKENIZER.decode([ids[0], 1], skip_special_tokens=False)
