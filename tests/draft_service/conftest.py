"""A tiny random Llama that drafts; the rest of the rig is in the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forebay.kv.pool import BlockPool
from forebay.worker import Worker, WorkerConfig, build_worker

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 97, 32, 2, 4, 2, 8, 48
BLOCK_BYTES = LAYERS * 2 * KV_HEADS * 16 * HEAD_DIM * 4

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A model folder with random weights, loaded once."""
    return build_worker(
        WorkerConfig(
            model=str(_save(tmp_path_factory.mktemp("tiny"))),
            dtype="float32",
            device="cpu",
            pool_bytes=64 * BLOCK_BYTES,
        )
    )


def _save(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(11)
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{p}_proj": (KV_HEADS * HEAD_DIM, HIDDEN) for p in "kv"}
        shapes |= {f"{name}.self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qo"}
        shapes |= {f"{name}.mlp.{p}_proj": (MLP, HIDDEN) for p in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj": (HIDDEN, MLP)}
        shapes |= {f"{name}.{p}_layernorm": (HIDDEN,) for p in ("input", "post_attention")}
    tensors = {f"{n}.weight": torch.randn(shape, generator=generator) * 0.3 for n, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def make_worker(loaded: Worker) -> Callable[[int], Worker]:
    """The model over a fresh pool of so many blocks."""

    def make(num_blocks: int) -> Worker:
        kv = torch.zeros((LAYERS, num_blocks, *loaded.layout.shape[1:]))
        return replace(loaded, kv=kv, pool=BlockPool(num_blocks, 16))

    return make
