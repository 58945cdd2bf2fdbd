"""A tiny random Llama, a naive loop over it as the yardstick, and the decode engine driven step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from decode_service.admission import AttachRequest
from decode_service.config import DecodeConfig
from decode_service.outputs import Finished, Started, StepOutput
from decode_service.sequence import Owner
from decode_service.server import DecodeParts
from forebay.kv.pool import BlockPool
from forebay.sampling import RowState, SamplingBatch, SamplingRow, sample
from forebay.transport.local import LocalHandoff
from forebay.types import FinishReason, SamplingParams, TokenLogprobs, choice_seed, finish_of
from forebay.worker import Worker, build_worker

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 97, 32, 2, 4, 2, 8, 48
BLOCK_BYTES = LAYERS * 2 * KV_HEADS * 16 * HEAD_DIM * 4
MAX_CONTEXT = 512

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights; scores differ clearly between tokens."""
    folder, generator = tmp_path_factory.mktemp("tiny"), torch.Generator().manual_seed(11)
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
        "max_position_embeddings": MAX_CONTEXT,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> Worker:
    """The model, loaded once; tests give it pools of their own."""
    config = DecodeConfig(
        model=str(model_folder), dtype="float32", device="cpu", pool_bytes=8 * BLOCK_BYTES * 16, block_size=16
    )
    worker = build_worker(config)
    worker.info.max_context = MAX_CONTEXT
    return worker


@pytest.fixture
def make_worker(loaded: Worker) -> Callable[[int], Worker]:
    """The model over a fresh pool of so many blocks."""

    def make(num_blocks: int) -> Worker:
        kv = torch.full((LAYERS, num_blocks, *loaded.layout.shape[1:]), float("nan"))
        kv[:, 0] = 0.0
        return replace(loaded, kv=kv, pool=BlockPool(num_blocks, 16))

    return make


class NaiveAttention:
    """Causal attention of one whole sequence; knows no cache."""

    def __init__(self, worker: Worker, num_tokens: int) -> None:
        self.cos, self.sin = (
            worker.model.rope.cos[:num_tokens, None],
            worker.model.rope.sin[:num_tokens, None],
        )

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(qkv.shape[0], -1, HEAD_DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        q, k = self._rotate(q), self._rotate(k)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).reshape(qkv.shape[0], -1)

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1)


@dataclass
class Choice:
    """What came out for one choice."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finished: Finished | None = None
    started: Started | None = None

    @property
    def reason(self) -> FinishReason:
        assert self.finished is not None
        return self.finished.reason


Naive = Callable[..., Choice]


@pytest.fixture
def naive(loaded: Worker) -> Naive:
    """Continue a prompt by computing the whole sequence anew for each token."""

    @torch.inference_mode()
    def generate(prompt: list[int], params: SamplingParams, choice: int = 0) -> Choice:
        eos = loaded.config.eos_token_ids
        row = RowState(params, choice_seed(params.seed, choice), prompt, eos)
        result, ids = Choice(), list(prompt)
        while True:
            hidden = loaded.model.forward(torch.tensor(ids), NaiveAttention(loaded, len(ids)))
            batch = SamplingBatch([SamplingRow(row, len(ids))])
            sampled = sample(loaded.model.logits(hidden[-1:]), batch)
            token_id = int(sampled.token_ids[0])
            row.append(token_id)
            ids.append(token_id)
            result.token_ids.append(token_id)
            result.logprobs += [entry for entry in sampled.logprobs if entry is not None]
            reason = finish_of(token_id, len(result.token_ids), params, eos, MAX_CONTEXT - len(ids))
            if reason is not FinishReason.UNSPECIFIED:
                result.finished = Finished(reason)
                return result

    return generate


class Rig:
    """An engine stepped by the test; one stream."""

    def __init__(self, worker: Worker, handoff: LocalHandoff | None = None, **options: object) -> None:
        self.worker = worker
        config = DecodeConfig(**{"max_batch_size": 64, "max_batch_tokens": 128, **options})  # type: ignore[arg-type]
        self.parts = DecodeParts(config, worker, handoff)
        self.engine, self.scheduler = self.parts.engine, self.parts.engine.scheduler
        self.engine.publish = self._take
        self.choices: dict[tuple[int, int], Choice] = {}
        self.num_frames = 0

    def attach(self, slot: int, prompt: list[int], params: SamplingParams, **fields: object) -> None:
        request = AttachRequest(
            f"request-{slot}",
            prompt,
            fields.pop("num_prompt_tokens", len(prompt)),  # type: ignore[arg-type]
            params,
            b"",
            self.worker.fingerprint,
            **fields,  # type: ignore[arg-type]
        )
        lead = self.parts._admission.build(Owner(1, slot), request)
        self.engine.attach(request.request_id, lead)

    def start(self, slot: int, first_token_ids: list[int] | None = None, num_blocks: int = 0) -> None:
        self.engine.start(Owner(1, slot), first_token_ids or [], num_blocks)

    def submit(self, slot: int, prompt: list[int], params: SamplingParams, **fields: object) -> None:
        self.attach(slot, prompt, params, **fields)
        self.start(slot)

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if not self.engine.step():
                return
        raise AssertionError("the engine does not come to an end")

    def choice(self, slot: int, choice: int = 0) -> Choice:
        return self.choices[slot, choice]

    def _take(self, outputs: dict[int, StepOutput]) -> None:
        assert set(outputs) == {1}
        output, self.num_frames = outputs[1], self.num_frames + 1
        for slot, choice, token_id in zip(output.slots, output.choices, output.token_ids, strict=True):
            self.choices.setdefault((slot, choice), Choice()).token_ids.append(token_id)
        for slot, choice, event in output.events:
            target = self.choices.setdefault((slot, choice), Choice())
            if isinstance(event, Finished):
                assert target.finished is None
                target.finished = event
            elif isinstance(event, Started):
                assert target.started is None
                target.started = event
            else:
                target.logprobs.append(event)


@pytest.fixture
def make_rig(make_worker: Callable[[int], Worker]) -> object:
    """Rigs that must end up idle."""
    rigs: list[Rig] = []

    def make(num_blocks: int = 256, handoff: LocalHandoff | None = None, **options: object) -> Rig:
        rigs.append(Rig(make_worker(num_blocks), handoff, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.engine.check_integrity(True)
