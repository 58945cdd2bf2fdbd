"""Greedy output through the whole platform equals transformers', token by token.

The comparison is teacher-forced: transformers reads prompt + our output once and its argmax at each position
must be our next token. By induction that is the output of its own greedy loop. Where its two best logits are
closer than MARGIN either of the two is right, and the check goes on along our output.
"""

import pytest
import torch
from e2e_prompts import PROMPTS

from forebay.model.hub import resolve_model

MARGIN = 1e-3
NUM_NEW_TOKENS = 64


@pytest.fixture(scope="module")
def oracle():
    """transformers in fp32 on the same folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32).eval()


def logits_of(model, token_ids: list[int], num_last: int) -> torch.Tensor:
    """Logits [num_last, V] that predict the last `num_last` tokens of `token_ids`."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids[:-1]]), logits_to_keep=num_last).logits[0].float()


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_equals_transformers_fp32(rig, oracle, name):
    prompt_ids = rig.client.tokenize(PROMPTS[name])
    ours = rig.client.generate(PROMPTS[name], max_tokens=NUM_NEW_TOKENS, ignore_eos=True).token_ids
    assert len(ours) == NUM_NEW_TOKENS
    logits = logits_of(oracle, prompt_ids + ours, NUM_NEW_TOKENS)
    best = logits.topk(2, dim=-1)
    num_near_ties = 0
    for position, token_id in enumerate(ours):
        first, second = best.indices[position].tolist()
        if token_id == first:
            continue
        margin = float(best.values[position, 0] - best.values[position, 1])
        assert margin < MARGIN and token_id == second, (
            f"position {position}: {token_id}, transformers {first}"
        )
        num_near_ties += 1
    assert num_near_ties <= 2


@pytest.mark.parametrize("rig", [{"dtype": "bfloat16"}], indirect=True)
@pytest.mark.parametrize("name", ["capital", "chat_list", "code_python", "story_300", "unicode_cjk"])
def test_logprobs_bf16_are_as_close_as_transformers_bf16(rig, oracle, name):
    """Our bf16 log-probabilities err from fp32 no more than twice what transformers' bf16 err."""
    from transformers import AutoModelForCausalLM

    oracle_bf16 = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.bfloat16).eval()
    prompt_ids = rig.client.tokenize(PROMPTS[name])
    choice = rig.client.generate(PROMPTS[name], max_tokens=32, ignore_eos=True, logprobs=0).choices[0]
    ours = torch.tensor([entry.logprob for entry in choice.logprobs])
    ids = torch.tensor(choice.token_ids)[:, None]
    exact, theirs = (
        logits_of(model, prompt_ids + choice.token_ids, 32).log_softmax(-1).gather(1, ids)[:, 0]
        for model in (oracle, oracle_bf16)
    )
    error, their_error = (ours - exact).abs().mean(), (theirs - exact).abs().mean()
    assert error <= 2 * their_error + 0.01, f"ours {error:.4f}, transformers {their_error:.4f}"
