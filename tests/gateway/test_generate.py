"""The request path over real gRPC: placement, first token, choices, stops, receipts."""

import grpc
import pytest
from gateway_fakes import BLOCK_SIZE, EOS, tiny_tokenizer
from prometheus_client import REGISTRY

from forebay.types import FinishReason
from forebay.v1 import common_pb2, inference_pb2

TOKENIZER = tiny_tokenizer()


def request(prompt="The quick brown fox " * 8, stop=(), sampling=None, **fields):
    message = inference_pb2.GenerateRequest(
        stop=stop, sampling=common_pb2.SamplingParams(**(sampling or {})), **fields
    )
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.ids.extend(prompt)
    return message


async def collect(call):
    """(token ids, text, finish reason) per choice, and all messages."""
    messages = [m async for m in call]
    choices = {}
    for m in messages:
        ids, text, reason = choices.get(m.choice, ([], "", 0))
        choices[m.choice] = (ids + list(m.token_ids), text + m.text, m.finish_reason or reason)
    return choices, messages


async def test_first_token_then_decode(rig):
    choices, messages = await collect(rig.stub.Generate(request()))
    ids, text, reason = choices[0]
    assert ids == [10, 11, 12, 13] and reason == FinishReason.STOP
    assert text == TOKENIZER.decode(ids)
    assert [m.HasField("usage") for m in messages][-1] and not any(m.HasField("usage") for m in messages[:-1])
    assert list(rig.decode.starts()[0].first_token_ids) == [10]


async def test_receipt_adds_up(rig):
    _, messages = await collect(rig.stub.Generate(request(sampling={"seed": 7})))
    receipt, usage = messages[-1].receipt, messages[-1].usage
    assert sum(s.ms for s in receipt.stages) == pytest.approx(receipt.total_ms, rel=1e-6)
    assert receipt.placement.prefill == rig.prefill.address and receipt.placement.decode == rig.decode.address
    assert receipt.placement.reason and receipt.seed == 7 and receipt.placement.num_novel_tokens > 0
    assert (receipt.num_draft_tokens, receipt.num_accepted_tokens) == (5, 2)
    assert usage.cached_tokens == receipt.actual_cached_tokens == 7
    assert (
        usage.prompt_tokens == len(TOKENIZER.encode("The quick brown fox " * 8).ids)
        and usage.completion_tokens == 4
    )
    assert 0 < receipt.ttft_ms <= receipt.total_ms
    assert [s.name for s in receipt.stages][0] == "tokenize"


async def test_request_id_in_initial_metadata_and_first_message(rig):
    call = rig.stub.Generate(request(request_id="mine"))
    minted = dict(await call.initial_metadata())["forebay-request-id"]
    _, messages = await collect(call)
    assert messages[0].request_id == minted == rig.prefill.requests[0].request_id
    assert minted != "mine" and not messages[1].request_id


async def test_first_token_is_not_held_for_decode(rig):
    rig.decode.delay_s = 0.5
    call = rig.stub.Generate(request())
    first = await call.read()
    assert list(first.token_ids) == [10]
    call.cancel()


async def test_seed_is_drawn_once_for_both_workers(rig):
    _, messages = await collect(rig.stub.Generate(request()))
    seed = messages[-1].receipt.seed
    assert rig.prefill.requests[0].sampling.seed == seed and seed != 0
    attach = next(c.attach for c in rig.decode.commands if c.HasField("attach"))
    assert attach.sampling.seed == seed and attach.sampling.max_tokens > 0


async def test_choices(rig):
    rig.prefill.first_tokens = lambda r: [20, 21, 22]
    rig.decode.script = lambda attach, choice: [30 + choice] * (choice + 1)
    choices, messages = await collect(rig.stub.Generate(request(sampling={"n": 3})))
    assert {c: ids for c, (ids, _, _) in choices.items()} == {
        c: [20 + c] + [30 + c] * (c + 1) for c in range(3)
    }
    assert messages[-1].usage.completion_tokens == 9


async def test_logprobs_pair_with_tokens(rig):
    _, messages = await collect(rig.stub.Generate(request(sampling={"logprobs": 0})))
    assert [(list(m.token_ids), [p.token_id for p in m.logprobs]) for m in messages if m.token_ids]
    for m in messages:
        assert list(m.token_ids) == [p.token_id for p in m.logprobs]


async def test_first_token_ends_all(rig):
    choices, _ = await collect(rig.stub.Generate(request(sampling={"max_tokens": 1})))
    assert choices[0][0] == [10] and choices[0][2] == FinishReason.LENGTH
    assert not rig.decode.starts()


async def test_first_token_ends_one_of_two(rig):
    rig.prefill.first_tokens = lambda r: [EOS, 10]
    choices, _ = await collect(rig.stub.Generate(request(sampling={"n": 2})))
    assert choices[0] == ([EOS], "", FinishReason.STOP)
    assert choices[1][0] == [10, 11, 12, 13]


async def test_stop_string_over_tokens(rig):
    ids = TOKENIZER.encode("jumps over the lazy dog").ids
    rig.prefill.first_tokens = lambda r: ids[:1]
    rig.decode.script = lambda attach, choice: ids[1:] + [11] * 500
    rig.decode.delay_s = 0.001
    choices, _ = await collect(rig.stub.Generate(request(stop=["the la", "zzz"])))
    assert choices[0][1] == "jumps over " and choices[0][2] == FinishReason.STOP
    assert len(choices[0][0]) <= len(ids)


async def test_stop_string_ends_one_choice_only(rig):
    ids = TOKENIZER.encode("jumps over").ids
    rig.prefill.first_tokens = lambda r: [ids[0], 11]
    rig.decode.script = lambda attach, choice: ids[1:] + [11] * 30 if choice == 0 else [12] * 30
    rig.decode.delay_s = 0.001
    choices, _ = await collect(rig.stub.Generate(request(stop=["over"], sampling={"n": 2})))
    assert choices[0][1] == "jumps " and choices[1][0] == [11] + [12] * 30
    cancels = [
        c.cancel.choice for c in rig.decode.commands if c.HasField("cancel") and c.cancel.HasField("choice")
    ]
    assert cancels == [0]


async def test_special_and_stop_tokens_are_not_text(rig):
    rig.decode.script = lambda attach, choice: [1, 40, EOS]
    choices, _ = await collect(rig.stub.Generate(request()))
    assert choices[0][0] == [10, 1, 40, EOS] and choices[0][1] == TOKENIZER.decode([10, 40])
    kept, _ = await collect(rig.stub.Generate(request(keep_special_tokens=True)))
    assert kept[0][1] == TOKENIZER.decode([10, 1, 40], skip_special_tokens=False)


async def test_without_text(rig):
    choices, _ = await collect(rig.stub.Generate(request(text_output=False)))
    assert choices[0][0] == [10, 11, 12, 13] and choices[0][1] == ""


async def test_ready_blocks_reach_decode(rig):
    prompt = [50] * (3 * BLOCK_SIZE + 1)
    await collect(rig.stub.Generate(request(prompt)))
    assert [c.ready.num_blocks for c in rig.decode.commands if c.HasField("ready")] == [3]
    assert rig.decode.starts()[0].num_blocks == 3
    assert list(rig.prefill.requests[0].token_ids) == prompt


async def test_short_prompt_skips_prefill(make_rig):
    rig = await make_rig(local_prefill_max_tokens=-1)
    choices, messages = await collect(rig.stub.Generate(request([50] * BLOCK_SIZE)))
    assert choices[0][0] == [10, 11, 12, 13] and not rig.prefill.requests
    placement = messages[-1].receipt.placement
    assert placement.prefill == "decode" and "itself" in placement.reason
    assert messages[-1].usage.cached_tokens == 11
    await collect(rig.stub.Generate(request([50] * (BLOCK_SIZE + 1))))
    assert not rig.prefill.requests, "the first block is known to be at decode now"
    await collect(rig.stub.Generate(request([51] * (BLOCK_SIZE + 1))))
    assert len(rig.prefill.requests) == 1


async def test_no_prefill_worker(make_rig):
    rig = await make_rig(prefill=())
    choices, messages = await collect(rig.stub.Generate(request()))
    assert choices[0][0] == [10, 11, 12, 13]
    assert messages[-1].receipt.placement.prefill == "decode"


async def test_deadline_reaches_prefill(rig):
    await collect(rig.stub.Generate(request(), timeout=5))
    await collect(rig.stub.Generate(request("other " * 40)))
    # A deadline travels as a time-out, rounded up on the wire.
    assert 4 < rig.prefill.deadlines[0] < 5.5 and rig.prefill.deadlines[1] is None


async def test_tokenize_round_trip(rig):
    text = "héllo <|im_start|> 🎉"
    reply = await rig.stub.Tokenize(inference_pb2.TokenizeRequest(text=text))
    assert list(reply.token_ids) == TOKENIZER.encode(text).ids and "<|im_start|>" in reply.tokens
    back = await rig.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=reply.token_ids))
    assert back.text == text
    assert (await rig.stub.Tokenize(inference_pb2.TokenizeRequest())).token_ids == []
    assert (await rig.stub.Detokenize(inference_pb2.DetokenizeRequest())).text == ""


async def test_models(rig, info):
    reply = await rig.stub.ListModels(inference_pb2.ListModelsRequest())
    assert list(reply.models) == [info]
    assert (await rig.stub.GetModel(inference_pb2.GetModelRequest(model="tiny"))).model == info
    with pytest.raises(grpc.aio.AioRpcError, match="did you mean 'tiny'"):
        await rig.stub.GetModel(inference_pb2.GetModelRequest(model="tinny"))


async def test_without_index_the_gateway_remembers_what_the_store_got(rig):
    prompt = [50] * (3 * BLOCK_SIZE + 1)
    await collect(rig.stub.Generate(request(prompt)))
    assert rig.prefill.requests[0].num_store_blocks == 0
    _, messages = await collect(rig.stub.Generate(request(prompt)))
    assert rig.prefill.requests[1].num_store_blocks == 3
    assert messages[-1].receipt.predicted_cached_tokens == 3 * BLOCK_SIZE


async def test_outputs_count_as_cached_at_decode(make_rig):
    """The next turn of a conversation has the first one's output in its prompt."""
    rig = await make_rig(local_prefill_max_tokens=-1)
    rig.decode.script = lambda attach, choice: list(range(100, 100 + 3 * BLOCK_SIZE))
    prompt = [50] * BLOCK_SIZE * 2
    choices, _ = await collect(rig.stub.Generate(request(prompt)))
    assert len(rig.prefill.requests) == 1
    _, messages = await collect(rig.stub.Generate(request(prompt + choices[0][0])))
    assert len(rig.prefill.requests) == 1
    assert messages[-1].receipt.predicted_cached_tokens == 5 * BLOCK_SIZE


async def test_metrics(rig):
    def value(name, **labels):
        labels |= {"gen_ai_operation_name": "text_completion", "gen_ai_request_model": "tiny"}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    names = {
        "forebay_gateway_output_tokens_total": 4,
        "forebay_gateway_cached_tokens_total": 7,
        "gen_ai_server_time_to_first_token_seconds_count": 1,
        "gen_ai_server_request_duration_seconds_count": 1,
        "gen_ai_server_time_per_output_token_seconds_count": 1,
    }
    before = {name: value(name) for name in names}
    num_ok = value("forebay_gateway_requests_total", outcome="OK")
    await collect(rig.stub.Generate(request()))
    assert {name: value(name) - before[name] for name in names} == names
    assert value("forebay_gateway_requests_total", outcome="OK") == num_ok + 1
