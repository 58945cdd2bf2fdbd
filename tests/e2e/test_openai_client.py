"""The openai package, unchanged, against a whole platform and a real model."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "Name three colours of a rainbow."
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = "The three primary colours are"


@pytest.fixture
def client(rig):
    with OpenAI(base_url=rig.launcher.http_url, api_key="-", max_retries=0) as client:
        yield client


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 24} | options
    )


def complete(client, **options):
    return client.completions.create(
        **{"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 16} | options
    )


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve(model.id).id == MODEL


def test_both_dialects_say_the_same(rig, client):
    answer, same = chat(client), rig.client.chat(QUESTION, max_tokens=24)
    assert answer.choices[0].message.content == same.text and same.text
    assert answer.usage.prompt_tokens == same.usage.prompt_tokens
    assert answer.usage.completion_tokens == len(same.token_ids)
    text = complete(client).choices[0].text
    assert text == rig.client.generate(PROMPT, max_tokens=16).text
    assert complete(client, prompt=rig.client.tokenize(PROMPT)).choices[0].text == text


def test_a_stream_with_usage(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_logprobs_of_both_shapes(client):
    answer = chat(client, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    for entry in answer.logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert entry.token == entry.top_logprobs[0].token and bytes(entry.bytes).decode() == entry.token
    assert "".join(entry.token for entry in answer.logprobs.content).startswith(answer.message.content)
    choice = complete(client, logprobs=2, max_tokens=8).choices[0]
    assert "".join(choice.logprobs.tokens).startswith(choice.text) and len(choice.logprobs.tokens) == 8
    best = [max(top, key=top.get) for top in choice.logprobs.top_logprobs]
    assert best == choice.logprobs.tokens


def test_choices_and_seed(client):
    options = {"n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 12, "top_p": 0.95}
    texts = [choice.message.content for choice in chat(client, **options).choices]
    again = [choice.message.content for choice in chat(client, **options).choices]
    other = [choice.message.content for choice in chat(client, **options | {"seed": 8}).choices]
    assert texts == again != other and len(set(texts)) == 3


def test_stop_and_length(client):
    text = complete(client).choices[0].text
    word = text.split()[2]
    stopped = complete(client, stop=[word, "zzz"]).choices[0]
    assert stopped.text == text[: text.index(word)] and stopped.finish_reason == "stop"
    assert complete(client, max_tokens=3).choices[0].finish_reason == "length"


def test_extra_fields(client):
    biased = complete(client, extra_body={"top_k": 1, "temperature": 1.0}).choices[0].text
    assert biased == complete(client).choices[0].text
    assert complete(client, extra_body={"ignore_eos": True, "min_tokens": 16}).usage.completion_tokens == 16


def test_errors(client):
    with pytest.raises(openai.NotFoundError, match="did you mean"):
        chat(client, model="SmolLM2-135M")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature=5)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="not supported"):
        chat(client, tools=[{"type": "function", "function": {"name": "f"}}])


async def test_many_async_streams(rig):
    async def ask(client, number):
        text, messages = "", [{"role": "user", "content": f"Count from {number}."}]
        async for chunk in await chat(client, messages=messages, stream=True, max_tokens=16):
            text += chunk.choices[0].delta.content or ""
        return text

    async with AsyncOpenAI(base_url=rig.launcher.http_url, api_key="-") as client:
        texts = await asyncio.gather(*(ask(client, number) for number in range(8)))
    assert all(texts)


async def test_leaving_a_stream_stops_the_work(rig):
    async with AsyncOpenAI(base_url=rig.launcher.http_url, api_key="-") as client:
        extra = {"ignore_eos": True}
        stream = await chat(client, stream=True, max_tokens=1000, extra_body=extra)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
    rig.check_idle()
