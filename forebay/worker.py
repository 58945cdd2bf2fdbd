"""What prefill, decode and draft workers have in common: a model, a KV tensor and its block pool."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import structlog
import torch
from torch import Tensor

from forebay.config import option
from forebay.errors import ConfigError
from forebay.kv.layout import BlockLayout
from forebay.kv.pool import BlockPool
from forebay.model.attention import Model
from forebay.model.config import ModelConfig
from forebay.model.fingerprint import fingerprint
from forebay.model.hub import resolve_model
from forebay.model.registry import load_model
from forebay.v1.common_pb2 import ModelInfo

log = structlog.get_logger(__name__)

CPU_BLOCK_SIZE, GPU_BLOCK_SIZE = 16, 64
CPU_POOL_BYTES = 1 << 30
GPU_POOL_FRACTION = 0.85


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Fields that every worker with a model has; each service adds its own."""

    listen: str = option("127.0.0.1:0", help="host:port of the gRPC server; port 0 picks one")
    metrics_port: int = option(-1, help="port of the Prometheus endpoint; 0 picks one, -1 turns it off")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", help="least level that is logged"
    )
    grace_s: float = option(10.0, help="seconds that streams get to finish at shutdown")
    model: str = option("demo", help="'demo', a local folder, or a hub id")
    model_name: str = option("", help="name that requests use; default: the model's folder name")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", help="weights and KV dtype")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where the model runs")
    num_threads: int = option(0, help="CPU threads of the forward pass; 0 leaves torch's default")
    block_size: int = option(0, help="tokens per KV block; 0: 16 on CPU, 64 on GPU")
    pool_bytes: int = option(0, help="bytes of the block pool; 0: 1 GiB on CPU, 85 % of free memory on GPU")
    max_context: int = option(0, help="longest prompt plus output in tokens; 0: the model's own limit")
    kv_stores: tuple[str, ...] = option((), help="addresses of KV stores; none: no reuse across workers")
    kv_transport: Literal["auto", "shm", "grpc"] = option(
        "auto", help="how blocks move to and from the store"
    )
    redis_url: str = option("", help="Redis for membership; none: the gateway's static lists only")


@dataclass(frozen=True)
class Worker:
    """A loaded model with its pool. `kv`: [num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim]."""

    model: Model
    config: ModelConfig
    kv: Tensor
    pool: BlockPool
    layout: BlockLayout
    fingerprint: bytes
    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where the model and the pool live."""
        return self.kv.device


def build_worker(config: WorkerConfig) -> Worker:
    """Load the model and allocate the pool; blocking, so call it off the event loop."""
    device, dtype = pick_device(config.device), pick_dtype(config.dtype, pick_device(config.device))
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    folder = resolve_model(config.model)
    model_config = ModelConfig.from_folder(folder)
    block_size = config.block_size or (CPU_BLOCK_SIZE if device == "cpu" else GPU_BLOCK_SIZE)
    layout = BlockLayout(
        model_config.num_layers, block_size, model_config.num_kv_heads, model_config.head_dim, dtype
    )
    model = load_model(folder, dtype, device, _LogProgress())
    num_blocks = _num_blocks(config.pool_bytes, layout, device)
    pool = BlockPool(num_blocks, block_size)
    kv = _zeros((layout.num_layers, num_blocks, *layout.shape[1:]), getattr(torch, dtype), device)
    identity = fingerprint(folder, dtype, dtype, block_size)
    info = _model_info(config, model_config, layout, pool, folder, identity)
    log.info("worker_built", model=info.model, device=device, dtype=dtype, num_blocks=num_blocks)
    return Worker(model, model_config, kv, pool, layout, identity, info)


def pick_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for and torch sees no GPU")
    return device


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if dtype != "auto":
        return dtype
    has_bf16 = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if has_bf16 else "float32"


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros that on a CPU cost no memory until they are used: calloc, where torch.zeros would write them."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _num_blocks(pool_bytes: int, layout: BlockLayout, device: str) -> int:
    if not pool_bytes:
        pool_bytes = CPU_POOL_BYTES
        if device == "cuda":
            pool_bytes = int(torch.cuda.mem_get_info()[0] * GPU_POOL_FRACTION)
    num_blocks = pool_bytes // layout.block_bytes
    if num_blocks < 2:
        need = 2 * layout.block_bytes
        raise ConfigError(f"pool_bytes: {pool_bytes} holds fewer than 2 blocks; at least {need} are needed")
    return num_blocks


def _model_info(
    config: WorkerConfig,
    model: ModelConfig,
    layout: BlockLayout,
    pool: BlockPool,
    folder: Path,
    identity: bytes,
) -> ModelInfo:
    max_context = min(config.max_context or model.max_positions, (pool.num_blocks - 1) * pool.block_size)
    return ModelInfo(
        model=config.model_name or folder.name,
        fingerprint=identity,
        block_size=layout.block_size,
        max_context=min(max_context, model.max_positions),
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        dtype=layout.dtype,
        block_bytes=layout.block_bytes,
        folder=str(folder),
    )


class _LogProgress:
    """Logs loading at each tenth; the launcher turns these lines into a progress bar."""

    def __init__(self) -> None:
        self._tenth = -1

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        tenth = 10 * done_bytes // max(total_bytes, 1)
        if tenth > self._tenth:
            self._tenth = tenth
            log.info("model_load", done_bytes=done_bytes, total_bytes=total_bytes)
