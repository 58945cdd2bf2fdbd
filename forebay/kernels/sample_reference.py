"""Plain torch twins of the sampling kernels: same signatures, the CPU serving path and the tests' yardstick.

Shapes: R rows, V vocabulary, M edited entries, H head size of a partial sort.
"""

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
# The largest Gumbel noise of a float32 uniform is -log(-log(1 - 2^-24)) = 16.64; it bounds what can win.
_MAX_GUMBEL = 16.7
_MIN_UNIFORM = 2.0**-33
_FLOAT32_MARGIN = 1e-2  # far above the error of a float32 sum of a logit and its noise
# Partial sorts tried before a full one: of 49152 entries topk(256) costs 0.08 ms a row, a sort 2.9 ms (CPU).
_HEAD_SIZES = (256, 4096)


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    ids: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Repetition divides positive and multiplies negative logits; frequency and presence subtract."""
    values = logits[rows, ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[rows, ids] = values - frequency * counts - presence * (counts > 0)


def truncation_threshold(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Lowest logit each row may draw, from sorted prefixes of the row."""
    threshold = scaled.amax(-1) + min_p.log().to(scaled.dtype)
    if (top_k > 0).any():
        rank = torch.where(top_k > 0, top_k.clamp_max(scaled.shape[1]), 1)
        kth = scaled.topk(int(rank.max())).values.gather(1, rank[:, None] - 1)[:, 0]
        threshold = torch.where(top_k > 0, threshold.maximum(kth), threshold)
    rows = (top_p < 1).nonzero()[:, 0]
    if len(rows):
        threshold[rows] = _nucleus(scaled[rows], threshold[rows], top_p[rows])
    return threshold


def _nucleus(scaled: Tensor, threshold: Tensor, top_p: Tensor) -> Tensor:
    """Raise each row's threshold to the end of its smallest sorted prefix that holds top_p of the mass."""
    top = scaled.amax(-1, keepdim=True)
    mass = torch.where(scaled >= threshold[:, None], (scaled - top).exp(), 0).sum(-1, dtype=torch.float64)
    threshold, open_rows = threshold.clone(), torch.arange(len(scaled), device=scaled.device)
    for head_size in (*(size for size in _HEAD_SIZES if size < scaled.shape[1]), scaled.shape[1]):
        head = scaled[open_rows].topk(head_size).values  # [open, H], descending
        weights = (head.double() - top[open_rows]).exp()
        reached = weights.cumsum(-1) >= (top_p * mass)[open_rows, None]
        if head_size == scaled.shape[1]:
            reached[:, -1] = True  # rounding must not leave a row without an end
        last = head.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]
        closed = reached.any(-1)
        rows = open_rows[closed]
        threshold[rows] = threshold[rows].maximum(last[closed])
        open_rows = open_rows[~closed]
        if not len(open_rows):
            break
    return threshold


def philox_uniform(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Pick lane id % 4 of the Philox block of id // 4."""
    blocks = torch.stack(_philox(seeds, positions, ids // 4), dim=-1)
    lanes = (ids % 4).expand(blocks.shape[:-1])
    return _uniform(blocks.gather(-1, lanes[..., None])[..., 0])


def _philox(seeds: Tensor, positions: Tensor, counters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., 2011), 32-bit words in int64; counter = (counters, positions, 0, 0).

    Products wrap modulo 2^64. Odd words only meet xor, so their high halves are dropped once, at the end.
    """
    shape = torch.broadcast_shapes(seeds.shape, positions.shape, counters.shape)
    c0, c1 = counters.expand(shape), positions
    c2 = c3 = torch.zeros_like(c0)
    k0, k1 = seeds, seeds >> 32
    for _ in range(10):
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (product2 >> 32).bitwise_xor_(c1 ^ k0).bitwise_and_(_LOW32), product2
        c2, c3 = (product0 >> 32).bitwise_xor_(c3 ^ k1).bitwise_and_(_LOW32), product0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1 & _LOW32, c2, c3 & _LOW32


def _uniform(words: Tensor) -> Tensor:
    """Map 32-bit words to float32 in [0, 1) exactly as `triton.language.random.uint_to_uniform_float`."""
    folded = torch.where(words >= 1 << 31, _LOW32 - words, words)
    return folded.float() * 4.6566127342e-10


def gumbel_argmax(scaled: Tensor, threshold: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Narrow down to the entries that can win, then decide among them in float64, where ties are rare."""
    top, top_ids = scaled.max(-1)
    certain = top + _gumbel(philox_uniform(seeds, positions, top_ids))  # what the winner has to beat
    entries = scaled >= threshold.maximum((certain - _MAX_GUMBEL).to(scaled.dtype))[:, None]
    rows, ids = entries.nonzero(as_tuple=True)
    if len(rows) * 8 > scaled.numel():
        rows, ids = _contenders(scaled.masked_fill(~entries, -torch.inf), seeds, positions)
    values = scaled[rows, ids] + _gumbel(philox_uniform(seeds[rows], positions[rows], ids))
    best = torch.full_like(certain, -torch.inf).scatter_reduce(0, rows, values, "amax")
    winners = values == best[rows]
    # A row of NaN has no entries: it keeps its argmax, so that it cannot index past the vocabulary.
    return top_ids.scatter_reduce(0, rows[winners], ids[winners], "amin", include_self=False)


def _contenders(scaled: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, ids) within float32 error of the row's best; one Philox block serves four ids."""
    num_rows, num_entries = scaled.shape
    counters = torch.arange(-(-num_entries // 4), device=scaled.device)
    words = torch.stack(_philox(seeds[:, None], positions[:, None], counters), dim=-1)
    uniform = _uniform(words.view(num_rows, -1)[:, :num_entries]).clamp_min_(_MIN_UNIFORM)
    values = scaled - uniform.log_().neg_().log_()
    rows, ids = (values >= values.amax(-1, keepdim=True) - _FLOAT32_MARGIN).nonzero(as_tuple=True)
    return rows, ids


def _gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of float32 uniforms, float64."""
    return -(-uniform.double().clamp_min(_MIN_UNIFORM).log()).log()
