"""Results of steps on their way to the host, beside the steps that follow."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ReadBack:
    """Copies results int64 [N, 2, R] of a step to pinned memory on a stream of its own."""

    def __init__(self, results: Tensor) -> None:
        self._results, self._is_cuda = results, results.is_cuda
        self._pinned = torch.empty(results.shape, dtype=results.dtype, pin_memory=self._is_cuda)
        if self._is_cuda:
            self._stream = torch.cuda.Stream(results.device)
            self._computed = [torch.cuda.Event() for _ in results]
            self._arrived = [torch.cuda.Event() for _ in results]

    def start(self, place: int) -> None:
        """Call once the step that fills results[place] is launched on the current stream."""
        if not self._is_cuda:
            self._pinned[place] = self._results[place]
            return
        self._computed[place].record()
        self._stream.wait_event(self._computed[place])
        with torch.cuda.stream(self._stream):
            self._pinned[place].copy_(self._results[place], non_blocking=True)
            self._arrived[place].record()

    def wait(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Token ids and their log-probabilities, by row; the other threads run meanwhile."""
        if self._is_cuda:
            self._arrived[place].synchronize()
        token_ids, bits = self._pinned[place].numpy()
        return token_ids, bits.astype(np.int32).view(np.float32)
