"""How many CPU threads a step of few tokens uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Reading the weights bounds such a step: half of the cores read nearly as fast as all do, and the gateway and
# prefill find the rest free. 2 cores, 135 M parameters in bfloat16, 1 thread or 2 that sleep between
# operations: 12.8 or 15.6 ms for 1 token, 17.3 or 18.7 for 8, 38 or 33 for 32. The bits are the same.
MAX_FEW_TOKENS = 12


@contextmanager
def threads_for(num_tokens: int, device: torch.device) -> Iterator[None]:
    """Within the block this thread's operations use half of its threads if the step is small."""
    num_threads = torch.get_num_threads()
    if num_tokens > MAX_FEW_TOKENS or num_threads == 1 or device.type != "cpu":
        yield
        return
    torch.set_num_threads(num_threads // 2)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
