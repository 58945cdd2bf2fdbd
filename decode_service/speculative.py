"""Speculative decoding: how many tokens to draft, and which of them to keep.

Speculative sampling (Leviathan et al. 2023, Chen et al. 2023) accepts a draft d ~ q with probability
min(1, p(d) / q(d)) and otherwise draws from the residual max(0, p - q), normalised; the result has the
target's distribution p. Here the target draws by Gumbel-max: x = argmax(logits + noise(seed, position)),
x ~ p, whatever was drafted. A proposal is one fixed token, q(d) = 1, so the rule reads: accept with
probability p(d), else draw from p without d. Drawing x and accepting iff x == d is exactly that: P(x = d) =
p(d), and given x != d, x has the distribution of the residual. Since x does not depend on d at all, even a
drafter that knows the noise cannot bias it, and tokens with and without speculation are the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_GAIN = 0.25  # a draft token less likely to be used than this costs more than it brings
EMA_WEIGHT = 0.15
NUM_SKIPS_BEFORE_PROBE = 16


def num_accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """How many leading drafts equal the target's own tokens; `sampled` has one token more than `drafts`."""
    for i, draft in enumerate(drafts):
        if draft != sampled[i]:
            return i
    return len(drafts)


@dataclass(slots=True)
class DraftState:
    """What speculation remembers about one sequence."""

    slot: int = 0  # name of the sequence at the drafter; 0: not open
    epoch: int = -1  # connection to the drafter that `slot` belongs to
    num_synced: int = 0  # tokens that the drafter was told
    acceptance: float = 0.8  # moving average of the chance that a draft token is accepted
    num_skips: int = 0
    num_proposed: int = 0
    num_accepted: int = 0

    def num_drafts(self, most: int) -> int:
        """Tokens worth drafting: as long as the last one is used with a chance of at least LEAST_GAIN."""
        chance, num = self.acceptance, 0
        while num < most and chance >= LEAST_GAIN:
            num, chance = num + 1, chance * self.acceptance
        self.num_skips = 0 if num else self.num_skips + 1
        if self.num_skips <= NUM_SKIPS_BEFORE_PROBE:
            return num
        self.num_skips = 0
        return min(1, most)

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """Learn from one verified run: a geometric trial that ends at the first rejection."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        num_trials = num_accepted + (num_accepted < num_proposed)
        for trial in range(num_trials):
            self.acceptance += EMA_WEIGHT * ((trial < num_accepted) - self.acceptance)
