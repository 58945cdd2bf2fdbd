"""Safetensors checkpoints, one file or sharded: memory-mapped, cast on the way, no tensor left over."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forebay.errors import UnsupportedModel
from forebay.model.folder import shard_paths, some

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """Hands out tensors by name and keeps account, so that a misnamed tensor is an error and not silence."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.device = device
        self._folder = folder
        self._dtype = dtype
        self._progress = progress or (lambda done, total: None)
        shards = shard_paths(folder)
        self._num_bytes, self._num_bytes_done = sum(path.stat().st_size for path in shards), 0
        files = [_open(path) for path in shards]
        self._unread = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def load(self, name: str, *shape: int) -> Tensor:
        """One tensor of exactly this shape, in the checkpoint's target dtype and on its device."""
        return self.load_stacked({name: shape[0]}, *shape[1:])

    def load_stacked(self, rows: Mapping[str, int], *columns: int) -> Tensor:
        """Tensors stacked along the first dimension, in order: one allocation, one copy each."""
        stacked = torch.empty(sum(rows.values()), *columns, dtype=self._dtype, device=self.device)
        for part, name in zip(torch.split(stacked, list(rows.values())), rows, strict=True):
            part.copy_(self._take(name, part.shape))
        return stacked

    def finish(self, has_tied_head: bool) -> None:
        """Raise UnsupportedModel if a tensor was left over; buffers that we compute ourselves may be."""
        tied = {"lm_head.weight"} if has_tied_head else set()
        left = [name for name in self._unread.keys() - tied if not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise UnsupportedModel(f"{self._folder}: {len(left)} unexpected tensors, such as {some(left)}")
        self._progress(self._num_bytes, self._num_bytes)

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        file = self._unread.pop(name, None)
        if file is None:
            raise UnsupportedModel(f"{self._folder}: no tensor {name}; it has {some(list(self._unread))}")
        tensor: Tensor = file.get_tensor(name)
        if tensor.shape != shape:
            found, wanted = list(tensor.shape), list(shape)
            raise UnsupportedModel(f"{self._folder}: {name} has shape {found}; config.json says {wanted}")
        if tensor.dtype not in SOURCE_DTYPES:
            raise UnsupportedModel(
                f"{self._folder}: {name} holds {tensor.dtype}; only 16 and 32-bit floats are read"
            )
        self._num_bytes_done += tensor.nbytes
        self._progress(self._num_bytes_done, self._num_bytes)
        return tensor


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UnsupportedModel(f"{path} is damaged or not a safetensors file: {error}") from error
