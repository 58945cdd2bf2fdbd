"""The Triton sampler draws what the reference draws, for every mix of parameters in one batch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from forebay.kernels import sample_reference as reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log:RuntimeWarning"),  # min-p 0
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # Philox products wrap
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
V = 1777
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition", "presence", "frequency")
ROWS = [
    (0, 0, 1, 0, 1, 0, 0),
    (1, 0, 1, 0, 1, 0, 0),
    (0.7, 5, 1, 0, 1, 0, 0),
    (1, 0, 0.9, 0, 1, 0, 0),
    (1, 0, 1, 0.05, 1, 0, 0),
    (1.3, 50, 0.8, 0.01, 1, 0, 0),
    (1, 0, 0.95, 0, 1.2, 0.3, 0.1),
    (0, 0, 1, 0, 1.2, 0.3, 0.1),
    (2, 0, 0.99, 0, 1, 0, 0),
    (1, 1000, 0.999, 0, 1, 0, 0),
    (1, 1, 1, 0, 1, 0, 0),
    (0.8, 10 * V, 1, 0, 1, 0, 0),
]
COUNTED = {6: 0, 7: 1}  # row -> its place in counts


@pytest.fixture(params=[256, 1024])
def candidates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small buffer sends the wide rows down the slow path."""
    from forebay.kernels import triton_sample

    monkeypatch.setattr(triton_sample, "CANDIDATES", request.param)
    monkeypatch.setattr(triton_sample, "BLOCK", 512)
    yield


def _counts() -> Tensor:
    """Ids of a prompt, some of them in the output too."""
    counts, ids = torch.zeros(2, V, dtype=torch.int32), torch.randint(0, V, (200,))
    counts[:, ids[:100]] = 1
    for token_id in ids[50:].tolist():
        counts[:, token_id] = (counts[:, token_id] | 1) + 2
    return counts


def _state(counts: Tensor):
    from forebay.kernels.triton_sample import SamplingState

    num_rows = len(ROWS)
    columns = dict(
        zip(NAMES, (torch.tensor(c, dtype=torch.float32) for c in zip(*ROWS, strict=True)), strict=True)
    )
    columns["top_k"] = columns["top_k"].int()
    num_edits = torch.zeros(num_rows, dtype=torch.int32)
    num_edits[0], num_edits[3] = 1, 3
    edit_ids = torch.stack([torch.randperm(V)[:4] for _ in range(num_rows)]).int()
    count_rows = torch.tensor([COUNTED.get(r, -1) for r in range(num_rows)], dtype=torch.int32)
    tensors = columns | {
        "seeds": torch.randint(-(2**62), 2**62, (num_rows,)),
        "positions": torch.randint(0, 100_000, (num_rows,)),
        "num_edits": num_edits,
        "edit_ids": edit_ids,
        "edit_values": 5 * torch.randn(num_rows, 4),
        "count_rows": count_rows,
        "counts": counts.clone(),
    }
    return SamplingState(**{name: tensor.to(DEVICE) for name, tensor in tensors.items()})


def _edited(logits: Tensor, state, counts: Tensor) -> Tensor:
    edited = logits.clone()
    for r in range(len(ROWS)):
        for e in range(int(state.num_edits[r])):
            edited[r, state.edit_ids[r, e]] += state.edit_values[r, e]
        if r in COUNTED:
            ids = counts[COUNTED[r]].nonzero()[:, 0].to(DEVICE)
            output = counts.to(DEVICE)[COUNTED[r], ids] >> 1
            penalties = (torch.full((len(ids),), ROWS[r][i], device=DEVICE) for i in (4, 5, 6))
            reference.apply_penalties(edited, torch.full_like(ids, r), ids, output, *penalties)
    return edited


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_draws_the_reference_token(scale: float) -> None:
    """Tokens, logprobs and counts of twelve kinds of rows."""
    from forebay.kernels.triton_sample import sample

    torch.manual_seed(int(scale))
    counts, logits = _counts(), (scale * torch.randn(len(ROWS), V)).to(DEVICE)
    state = _state(counts)
    tokens, logprobs = sample(logits, state)
    edited = _edited(logits, state, counts)
    for r, (temperature, top_k, top_p, min_p, *_) in enumerate(ROWS):
        if temperature == 0:
            expected = edited[r].argmax()
        else:
            scaled = edited[r : r + 1] / temperature
            limits = torch.tensor([top_k]), torch.tensor([top_p]).double(), torch.tensor([min_p]).double()
            threshold = reference.truncation_threshold(scaled, *(limit.to(DEVICE) for limit in limits))
            noise = state.seeds[r : r + 1], state.positions[r : r + 1]
            expected = reference.gumbel_argmax(scaled, threshold, *noise)[0]
        assert tokens[r] == expected, ROWS[r]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    for r, place in COUNTED.items():
        before = int(counts[place, tokens[r]])
        assert int(state.counts[place, tokens[r]]) == (before | 1) + 2
