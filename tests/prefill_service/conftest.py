"""A tiny random Llama as a worker, and prefill served over real gRPC with a real store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forebay.rpc.client import connect
from forebay.rpc.server import Server
from forebay.v1 import admin_pb2, admin_pb2_grpc, prefill_pb2_grpc
from forebay.worker import Worker, build_worker
from forebay.worker_app import WorkerApp
from kv_store.config import KvStoreConfig
from kv_store.server import KvStoreApp
from prefill_service.config import PrefillConfig
from prefill_service.server import PrefillParts

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 97, 32, 2, 4, 2, 8, 48
NUM_BLOCKS = 64
POOL_BYTES = NUM_BLOCKS * LAYERS * 2 * KV_HEADS * 16 * HEAD_DIM * 4


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights; scores differ clearly between tokens."""
    folder, generator = tmp_path_factory.mktemp("tiny"), torch.Generator().manual_seed(7)
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
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def config(model_folder: Path) -> PrefillConfig:
    return PrefillConfig(model=str(model_folder), dtype="float32", device="cpu", pool_bytes=POOL_BYTES)


@pytest.fixture
def worker(config: PrefillConfig) -> Worker:
    return build_worker(config)


@dataclass
class Rig:
    """A served app, its parts and stubs."""

    app: WorkerApp
    parts: list[PrefillParts]
    stub: prefill_pb2_grpc.PrefillServiceStub
    admin: admin_pb2_grpc.AdminServiceStub
    store: KvStoreApp | None = None
    store_server: Server | None = None

    @property
    def worker(self) -> Worker:
        return self.app._worker

    async def check_idle(self) -> None:
        await self.admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))


Serve = Callable[[PrefillConfig], AbstractAsyncContextManager[Rig]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(config) as rig`: prefill alone in this process, checked for leaks at the end."""

    @asynccontextmanager
    async def run(config: PrefillConfig) -> AsyncIterator[Rig]:
        parts: list[PrefillParts] = []

        def make_parts(worker: Worker) -> list[PrefillParts]:
            parts.append(PrefillParts(config, worker))
            return parts

        app, server = WorkerApp("prefill", config, make_parts), Server("127.0.0.1:0")
        await server.start()
        service = await app.build()
        await server.add(service)
        async with connect(f"127.0.0.1:{server.port}") as channel:
            stub = prefill_pb2_grpc.PrefillServiceStub(channel)
            yield Rig(app, parts, stub, admin_pb2_grpc.AdminServiceStub(channel))
        await server.stop(0)
        await service.close()

    return run


@pytest.fixture
async def store() -> AsyncIterator[tuple[KvStoreApp, Server]]:
    """A real store and the server it is on."""
    app, server = KvStoreApp(KvStoreConfig(arena_bytes=4 << 20, prefault=False)), Server("127.0.0.1:0")
    await server.start()
    service = await app.build()
    await server.add(service)
    yield app, server
    await server.stop(0)
    await service.close()
