"""Sampling: the right distribution, exact candidate sets, and rows that depend on nothing but themselves."""

import math

import pytest
import torch

from forebay.kernels.sample import gumbel_argmax, philox_uniform, truncation_threshold
from forebay.sampling import RowState, SampleResult, SamplingBatch, SamplingRow, sample
from forebay.types import SamplingParams


def _row(position: int = 0, seed: int = 7, prompt=(), output=(), eos=(), pending=(), **params) -> SamplingRow:
    state = RowState(SamplingParams(**params), seed, prompt, eos, output)
    return SamplingRow(state, position, tuple(pending))


def _sample(logits: torch.Tensor, *rows: SamplingRow) -> SampleResult:
    return sample(logits.clone(), SamplingBatch(rows))


def _logits(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def _draws(logits: torch.Tensor, num: int, seed: int = 11) -> torch.Tensor:
    """Draw at `num` positions from one row of logits."""
    rows = logits.expand(num, -1).contiguous()
    off = torch.full((num,), -torch.inf)
    return gumbel_argmax(rows, off, torch.full((num,), seed), torch.arange(num))


@pytest.mark.parametrize("seed", [11, -5])
def test_draws_follow_the_softmax(seed: int) -> None:
    logits, num = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5]]), 20_000
    expected = logits.softmax(-1)[0].double() * num
    counts = torch.bincount(_draws(logits, num, seed), minlength=7).double()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 22.5  # 6 degrees of freedom, p = 0.001


def test_draws_of_neighbouring_seeds_are_independent() -> None:
    logits, num = torch.zeros(1, 4), 8_000
    pairs = _draws(logits, num, 1) * 4 + _draws(logits, num, 2)
    counts = torch.bincount(pairs, minlength=16).double()
    assert float(((counts - num / 16) ** 2 / (num / 16)).sum()) < 37.7  # 15 degrees of freedom, p = 0.001


@pytest.mark.parametrize("scale", [0.1, 30.0], ids=["flat: dense noise", "peaked: sparse noise"])
def test_narrowing_never_changes_the_draw(scale: float) -> None:
    """Against noise on every entry in float64."""
    logits = _logits(16, 1001, scale=scale)
    seeds, positions = torch.arange(16) * 977, torch.arange(16)
    uniform = philox_uniform(seeds[:, None], positions[:, None], torch.arange(1001)[None]).double()
    expected = (logits - (-uniform.clamp_min(2.0**-33).log()).log()).argmax(-1)
    assert torch.equal(gumbel_argmax(logits, torch.full((16,), -torch.inf), seeds, positions), expected)


def _naive_kept(scaled: torch.Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Full sort of one row in float64: min-p, then top-k, then top-p over what is left."""
    probs = scaled.double().softmax(-1)
    order = probs.argsort(descending=True).tolist()
    mass_of = probs.tolist()
    order = [i for i in order if mass_of[i] >= min_p * mass_of[order[0]]][: top_k or None]
    total, mass, kept = sum(mass_of[i] for i in order), 0.0, set()
    for i in order:
        kept.add(i)
        mass += mass_of[i]
        if mass >= top_p * total:
            break
    return kept


@pytest.mark.parametrize("vocab_size", [5, 123, 6000])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (1, 1.0, 0.0),
        (17, 1.0, 0.0),
        (10_000, 1.0, 0.0),
        (0, 0.9, 0.0),
        (0, 0.0, 0.0),
        (0, 0.99999, 0.0),
    ]
    + [(0, 1.0, 0.05), (0, 1.0, 1.0), (50, 0.8, 0.0), (3, 0.95, 0.3), (0, 0.7, 0.01)],
)
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_candidates_equal_a_full_sort(
    vocab_size: int, top_k: int, top_p: float, min_p: float, scale: float
) -> None:
    scaled = _logits(2, vocab_size, scale=scale)
    columns = (
        torch.tensor([top_k] * 2),
        torch.tensor([top_p] * 2).double(),
        torch.tensor([min_p] * 2).double(),
    )
    threshold = truncation_threshold(scaled, *columns)
    for r in range(len(scaled)):
        kept = set((scaled[r] >= threshold[r]).nonzero()[:, 0].tolist())
        expected = _naive_kept(scaled[r], top_k, top_p, min_p)
        # Rounding may move the border by one entry when the mass is spread over thousands.
        assert len(kept ^ expected) <= (top_p < 1 and vocab_size > 1000)


def test_ties_at_the_threshold_stay() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0]])
    threshold = truncation_threshold(
        logits, torch.tensor([2]), torch.ones(1).double(), torch.zeros(1).double()
    )
    assert threshold.tolist() == [1.0]


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
    assert _sample(logits, _row(temperature=0.0), _row(temperature=0.0)).token_ids.tolist() == [1, 0]


def test_repetition_covers_prompt_and_output() -> None:
    logits = torch.tensor([[4.0, -4.0, 4.0, 2.5]])
    row = _row(temperature=0.0, repetition_penalty=2.0, prompt=[0, 1, 1], output=[2])
    edited = logits.clone()
    result = sample(edited, SamplingBatch([row]))
    assert edited.tolist() == [[2.0, -8.0, 2.0, 2.5]]
    assert result.token_ids.tolist() == [3]


def test_presence_and_frequency_cover_output_only() -> None:
    edited = torch.zeros(1, 5)
    row = _row(presence_penalty=0.5, frequency_penalty=0.25, prompt=[0], output=[1, 2, 2], pending=[2, 3])
    sample(edited, SamplingBatch([row]))
    assert edited.tolist() == [[0.0, -0.75, -1.25, -0.75, 0.0]]


def test_all_penalties_match_the_formulas() -> None:
    logits, prompt, output = _logits(1, 300), [*range(100), 5, 5], [3, 250, 3, 299, *range(40, 80), 3]
    row = _row(
        prompt=prompt, output=output, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2
    )
    edited = logits.clone()
    sample(edited, SamplingBatch([row]))
    for i, value in enumerate(logits[0].tolist()):
        if i in prompt or i in output:
            value = value / 1.3 if value > 0 else value * 1.3
        value -= 0.2 * output.count(i) + 0.4 * (i in output)
        assert math.isclose(float(edited[0, i]), value, rel_tol=1e-5, abs_tol=1e-6), i


def test_appended_tokens_count_like_rebuilt_state() -> None:
    params = {"repetition_penalty": 1.2, "frequency_penalty": 0.1}
    grown, output = _row(prompt=range(70), **params), [5, 900, 5, *range(100, 300), 900]
    for token_id in output:
        grown.state.append(token_id)
    rebuilt = _row(prompt=range(70), output=output, **params)
    ids, counts = grown.state.occurrences()
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        **dict.fromkeys(range(70), 0),
        **{i: output.count(i) for i in output},
    }
    logits = _logits(1, 1000)
    assert torch.equal(_sample(logits, grown).token_ids, _sample(logits, rebuilt).token_ids)


def test_pending_draft_tokens_count_like_appended_ones() -> None:
    logits = _logits(1, 50)
    params = {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "min_tokens": 3, "stop_token_ids": (4,)}
    first, second = logits.clone(), logits.clone()
    sample(first, SamplingBatch([_row(prompt=[1], output=[7, 8], pending=[8, 9], **params)]))
    sample(second, SamplingBatch([_row(prompt=[1], output=[7, 8, 8, 9], **params)]))
    assert torch.equal(first, second)


def test_logit_bias() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert _sample(logits, _row(temperature=0.0, logit_bias={0: 5.0})).token_ids.tolist() == [0]
    banned = _sample(logits, _row(temperature=0.0, logit_bias={2: -100.0, 1: -100.0}))
    assert banned.token_ids.tolist() == [0]


@pytest.mark.parametrize(("ignore_eos", "expected"), [(False, 0), (True, 2)])
def test_min_tokens_masks_stop_ids(ignore_eos: bool, expected: int) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (1,), "ignore_eos": ignore_eos}
    early, late = _row(output=[0], eos=(2,), **params), _row(output=[0, 0], eos=(2,), **params)
    assert _sample(logits, early).token_ids.tolist() == [expected]
    assert _sample(logits, late).token_ids.tolist() == [2]


def test_seed_and_position_decide() -> None:
    logits = _logits(1, 500, scale=0.5)
    draw = [_sample(logits, _row(position=p, seed=s)).token_ids.item() for s in (1, 2) for p in range(20)]
    again = [_sample(logits, _row(position=p, seed=s)).token_ids.item() for s in (1, 2) for p in range(20)]
    assert draw == again
    assert len(set(draw)) > 20
    assert draw[:20] != draw[20:]


def test_seeds_use_all_64_bits() -> None:
    logits = _logits(1, 500, scale=0.5)
    seeds = [1, 1 + (1 << 32), 1 + (1 << 63), (1 << 64) - 1]
    assert len({_sample(logits, _row(seed=s)).token_ids.item() for s in seeds}) > 1


def test_rows_do_not_see_each_other() -> None:
    logits = _logits(8, 5000)
    rows = [
        _row(3, 1),
        _row(4, 2, temperature=0.0),
        _row(5, 3, top_p=0.9),
        _row(6, 4, top_k=20, temperature=0.7),
        _row(7, 5, min_p=0.1),
        _row(8, 6, prompt=range(50), repetition_penalty=1.2),
        _row(9, 7, top_p=0.5, top_k=4999, logprobs=2),
        _row(10, 8, temperature=1.7, logit_bias={3: 4.0}),
    ]
    together = _sample(logits, *rows)
    for r, row in enumerate(rows):
        alone = _sample(logits[r : r + 1], row)
        assert alone.token_ids.item() == together.token_ids[r].item()
        assert alone.logprobs[0] == together.logprobs[r]


def test_top_k_one_is_greedy_and_low_temperature_too() -> None:
    logits = _logits(2, 100)
    drawn = _sample(logits, _row(top_k=1), _row(temperature=1e-3)).token_ids
    assert torch.equal(drawn, logits.argmax(-1))


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = _logits(3, 40)
    rows = (_row(logprobs=3, temperature=0.3, logit_bias={5: 100.0}), _row(), _row(logprobs=0))
    result, expected = _sample(logits, *rows), logits.log_softmax(-1)
    first, _, third = result.logprobs
    assert first.token_id == 5 and result.logprobs[1] is None
    assert first.logprob == pytest.approx(float(expected[0, 5]), rel=1e-5)
    top = expected[0].topk(3)
    assert list(first.top_token_ids) == top.indices.tolist()
    assert list(first.top_logprobs) == pytest.approx(top.values.tolist(), rel=1e-5)
    assert third.top_token_ids == () and third.token_id == int(result.token_ids[2])


def test_a_row_of_nan_harms_no_other_row() -> None:
    logits = _logits(2, 64)
    expected = _sample(logits[1:], _row(1)).token_ids.item()
    logits[0] = torch.nan
    token_ids = _sample(logits, _row(0), _row(1)).token_ids.tolist()
    assert 0 <= token_ids[0] < 64 and token_ids[1] == expected


def test_masked_logits_are_never_drawn() -> None:
    logits = _logits(4, 64)
    logits[:, 1:] = -torch.inf
    assert _sample(logits, *[_row(position=p, top_p=0.9) for p in range(4)]).token_ids.tolist() == [0] * 4
