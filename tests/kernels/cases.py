"""One table of kernels with inputs, an oracle and a tolerance: it drives the parity tests and the benchmark.

A case runs an implementation as `run(function, inputs)` and gets back every tensor the kernel writes, so
kernels that return and kernels that write in place look the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from decode_service.kernels import paged_decode, verify
from decode_service.kernels import reference as decode_reference
from draft_service.kernels import draft_attention
from draft_service.kernels import reference as draft_reference
from forebay.kernels import reference, rms_norm, rope_write, swiglu
from kv_store.kernels import pack
from kv_store.kernels import reference as store_reference
from prefill_service.kernels import paged_prefill
from prefill_service.kernels import reference as prefill_reference

Inputs = tuple
Run = Callable[[Callable, Inputs], tuple[Tensor, ...]]

# Relative RMS error against float64 on the same inputs: roundings of the output and of bf16 softmax weights.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


@dataclass(frozen=True)
class Case:
    """One kernel on one shape; `num_bytes` and `num_flops` are what the work needs at least."""

    kernel: str
    shape: str
    dtype: torch.dtype
    wrapper: Callable
    reference: Callable
    oracle: Callable  # same signature, called with float64 inputs
    make: Callable[[torch.device], Inputs]
    num_bytes: int
    num_flops: int
    triton: str = ""  # "module:function" of the Triton launcher, if there is one
    run: Run = lambda function, inputs: _tensors(function(*inputs))

    @property
    def id(self) -> str:
        """Readable test id."""
        return f"{self.kernel}-{self.shape}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def tolerance(self) -> float:
        """Largest relative RMS error."""
        return TOLERANCE[self.dtype]


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _normal(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def norm_cases(shapes: list[tuple[int, int]], dtypes: list[torch.dtype]) -> Iterator[Case]:
    """RMSNorm over [T, N] with and without a residual."""
    for (rows, columns), dtype in _product(shapes, dtypes):

        def make(device: torch.device, num: int, rows=rows, columns=columns, dtype=dtype) -> Inputs:
            tensors = [_normal(rows, columns, dtype=dtype, device=device, seed=i) for i in range(num)]
            return (*tensors, _normal(columns, dtype=dtype, device=device, seed=9), 1e-5)

        for name, num in (("rms_norm", 1), ("add_rms_norm", 2)):
            yield Case(
                name,
                f"T{rows}-N{columns}",
                dtype,
                getattr(rms_norm, name),
                getattr(reference, name),
                partial(_norm_oracle, dtype),
                partial(make, num=num),
                num_bytes=2 * num * rows * columns * dtype.itemsize,
                num_flops=4 * rows * columns,
                triton=f"forebay.kernels.triton_rms_norm:{name}",
            )


def _norm_oracle(dtype: torch.dtype, *inputs) -> tuple[Tensor, ...]:
    *tensors, weight, eps = inputs
    x = sum(tensors).to(dtype).double()  # the residual is stored in the model's type and normed from there
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return (normed,) if len(tensors) == 1 else (normed, x)


def swiglu_cases(shapes: list[tuple[int, int]], dtypes: list[torch.dtype]) -> Iterator[Case]:
    """SwiGLU of [T, 2F]."""
    for (rows, columns), dtype in _product(shapes, dtypes):
        yield Case(
            "swiglu",
            f"T{rows}-F{columns}",
            dtype,
            swiglu.swiglu,
            reference.swiglu,
            lambda x: x[:, : x.shape[1] // 2].sigmoid() * x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :],
            lambda device, rows=rows, columns=columns, dtype=dtype: (
                _normal(rows, 2 * columns, dtype=dtype, device=device, seed=1),
            ),
            num_bytes=3 * rows * columns * dtype.itemsize,
            num_flops=4 * rows * columns,
            triton="forebay.kernels.triton_swiglu:swiglu",
        )


@dataclass(frozen=True)
class PagedShape:
    """A batch over paged KV: query run and context length of each sequence."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int

    def __str__(self) -> str:
        runs = "_".join(
            dict.fromkeys(f"{q}of{c}" for q, c in zip(self.query_lens, self.context_lens, strict=True))
        )
        heads = f"Hkv{self.num_kv_heads}-G{self.group}-D{self.head_dim}-bs{self.block_size}"
        return f"S{len(self.query_lens)}-{runs}-{heads}"

    def tables(self, device: torch.device) -> tuple[Tensor, int]:
        """Shuffled block tables, and the pool's number of blocks: twice the used ones, and block 0."""
        needed = [-(-length // self.block_size) for length in self.context_lens]
        num_blocks = 2 * sum(needed) + 1
        ids = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(5)) + 1
        tables = torch.zeros(len(needed), max(needed) + 2, dtype=torch.int32)
        for s, count in enumerate(needed):
            tables[s, :count], ids = ids[:count], ids[count:]
        return tables.to(device), num_blocks

    def inputs(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Queries and a pool whose every token outside the contexts is NaN."""
        tables, num_blocks = self.tables(device)
        pool_shape = (num_blocks, 2, self.num_kv_heads, self.block_size, self.head_dim)
        pool = _normal(*pool_shape, dtype=dtype, device=device, seed=2)
        is_used = torch.zeros(num_blocks, self.block_size, dtype=torch.bool, device=device)
        for s, length in enumerate(self.context_lens):
            tokens = torch.arange(length, device=device)
            is_used[tables[s, tokens // self.block_size].long(), tokens % self.block_size] = True
        pool.masked_fill_(~is_used[:, None, None, :, None], torch.nan)
        ends = torch.tensor([0, *self.query_lens]).cumsum(0)
        num_heads = self.num_kv_heads * self.group
        return {
            "q": _normal(int(ends[-1]), num_heads, self.head_dim, dtype=dtype, device=device, seed=3),
            "kv_layer": pool,
            "block_tables": tables,
            "cu_query_lens": ends.to(device, torch.int32),
            "context_lens": torch.tensor(self.context_lens, dtype=torch.int32, device=device),
        }

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values of all contexts, read once."""
        return 2 * sum(self.context_lens) * self.num_kv_heads * self.head_dim * dtype.itemsize

    @property
    def num_flops(self) -> int:
        """Two products per visible (query, key) pair and head."""
        pairs = sum(q * c - q * (q - 1) // 2 for q, c in zip(self.query_lens, self.context_lens, strict=True))
        return 4 * pairs * self.num_kv_heads * self.group * self.head_dim


def _dense_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale) -> Tensor:
    """The definition: one softmax per query and head over its visible tokens."""
    group, block_size = q.shape[1] // kv_layer.shape[2], kv_layer.shape[3]
    out = torch.empty_like(q)
    for s, length in enumerate(context_lens.tolist()):
        first, end = cu_query_lens[s : s + 2].tolist()
        tokens = torch.arange(length, device=q.device)
        rows = kv_layer[block_tables[s, tokens // block_size].long(), :, :, tokens % block_size]
        keys, values = rows.repeat_interleave(group, dim=2).unbind(1)  # [C, Hq, D]
        scores = torch.einsum("qhd,chd->hqc", q[first:end], keys) * scale
        visible = tokens <= tokens[length - (end - first) :, None]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[first:end] = torch.einsum("hqc,chd->qhd", weights, values)
    return out


def _dense_decode(q, kv_layer, block_tables, context_lens, scale) -> Tensor:
    cu_query_lens = torch.arange(len(q) + 1)
    return _dense_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)


_ATTENTION = {
    "paged_prefill_attention": (
        paged_prefill,
        prefill_reference,
        "prefill_service.kernels.triton_paged_prefill:paged_prefill_attention",
    ),
    "verify_attention": (
        verify,
        decode_reference,
        "forebay.kernels.triton_split_attention:split_attention",
    ),
    "draft_attention": (draft_attention, draft_reference, ""),
    "paged_decode_attention": (
        paged_decode,
        decode_reference,
        "decode_service.kernels.triton_paged_decode:paged_decode_attention",
    ),
}


def attention_cases(name: str, shapes: list[PagedShape], dtypes: list[torch.dtype]) -> Iterator[Case]:
    """One of the paged attentions; decode takes no cu_query_lens."""
    wrapper, twin, triton = _ATTENTION[name]
    is_decode = name == "paged_decode_attention"
    for shape, dtype in _product(shapes, dtypes):

        def make(device: torch.device, shape=shape, dtype=dtype) -> Inputs:
            inputs = shape.inputs(dtype, device)
            if is_decode:
                del inputs["cu_query_lens"]
            return (*inputs.values(), shape.head_dim**-0.5)

        yield Case(
            name,
            str(shape),
            dtype,
            getattr(wrapper, name),
            getattr(twin, name),
            _dense_decode if is_decode else _dense_attention,
            make,
            num_bytes=shape.num_bytes(dtype),
            num_flops=shape.num_flops,
            triton=triton,
        )


def rope_cases(shapes: list[tuple[int, int, int, int, int]], dtypes: list[torch.dtype]) -> Iterator[Case]:
    """Rope and write of T tokens: (T, Hkv, G, D, bs); every fifth row is padding."""
    for (rows, num_kv_heads, group, head_dim, block_size), dtype in _product(shapes, dtypes):
        num_heads, num_blocks = num_kv_heads * group, -(-rows // block_size) + 3

        def make(
            device,
            rows=rows,
            hkv=num_kv_heads,
            hq=num_heads,
            d=head_dim,
            bs=block_size,
            nb=num_blocks,
            dtype=dtype,
        ) -> Inputs:
            angles = torch.arange(2 * rows)[:, None] * torch.logspace(0, -3, d // 2)
            slots = bs + torch.randperm((nb - 1) * bs, generator=torch.Generator().manual_seed(4))[:rows]
            slots[4::5] = -1
            return (
                _normal(rows, (hq + 2 * hkv) * d, dtype=dtype, device=device, seed=1),
                angles.cos().to(device),
                angles.sin().to(device),
                torch.arange(rows, device=device) + rows // 2,
                slots.to(device),
                torch.zeros(nb, 2, hkv, bs, d, dtype=dtype, device=device),
                hq,
            )

        yield Case(
            "rope_write_kv",
            f"T{rows}-Hkv{num_kv_heads}-G{group}-D{head_dim}-bs{block_size}",
            dtype,
            rope_write.rope_write_kv,
            reference.rope_write_kv,
            _rope_oracle,
            make,
            num_bytes=2 * rows * (num_heads + 2 * num_kv_heads) * head_dim * dtype.itemsize,
            num_flops=3 * rows * (num_heads + num_kv_heads) * head_dim,
            triton="forebay.kernels.triton_rope_write:rope_write_kv",
            run=_run_rope,
        )


def _run_rope(function: Callable, inputs: Inputs) -> tuple[Tensor, ...]:
    """Returns q and the pool without the null block, which is scratch."""
    qkv, *rest, kv_layer, num_heads = inputs
    kv_layer = kv_layer.clone()
    return function(qkv.clone(), *rest, kv_layer, num_heads), kv_layer[1:]


def _rope_oracle(qkv, cos, sin, positions, slots, kv_layer, num_heads) -> Tensor:
    """Token by token, as complex rotation."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    heads = qkv.view(len(qkv), -1, head_dim)
    turned = torch.complex(*heads[:, : num_heads + num_kv_heads].chunk(2, dim=-1))
    turned = turned * torch.complex(cos, sin)[positions][:, None]
    turned = torch.cat((turned.real, turned.imag), dim=-1)
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            kv_layer[slot // block_size, 0, :, slot % block_size] = turned[t, num_heads:]
            kv_layer[slot // block_size, 1, :, slot % block_size] = heads[t, num_heads + num_kv_heads :]
    return turned[:, :num_heads]


def pack_cases(shapes: list[tuple[int, int, int, int, int]], dtypes: list[torch.dtype]) -> Iterator[Case]:
    """Packing and unpacking n of twice as many blocks: (n, L, Hkv, bs, D)."""
    for (n, layers, num_kv_heads, block_size, head_dim), dtype in _product(shapes, dtypes):
        block = (2, num_kv_heads, block_size, head_dim)

        def make(device, name: str, n=n, layers=layers, block=block, dtype=dtype) -> Inputs:
            pool = _normal(layers, 2 * n, *block, dtype=dtype, device=device, seed=1)
            ids = torch.randperm(2 * n, generator=torch.Generator().manual_seed(4))[:n].to(device)
            payload = _normal(n, layers, *block, dtype=dtype, device=device, seed=2)
            return (pool, ids, payload) if name == "pack_blocks" else (payload, pool, ids)

        for name, oracle in (("pack_blocks", _pack_oracle), ("unpack_blocks", _unpack_oracle)):
            yield Case(
                name,
                f"n{n}-L{layers}-Hkv{num_kv_heads}-bs{block_size}-D{head_dim}",
                dtype,
                getattr(pack, name),
                getattr(store_reference, name),
                oracle,
                partial(make, name=name),
                num_bytes=2 * n * layers * 2 * num_kv_heads * block_size * head_dim * dtype.itemsize,
                num_flops=0,
                triton=f"kv_store.kernels.triton_pack:{name}",
                run=_run_in_place,
            )


def _run_in_place(function: Callable, inputs: Inputs) -> tuple[Tensor, ...]:
    copies = tuple(tensor.clone() for tensor in inputs)
    function(*copies)
    return copies


def _pack_oracle(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    out.copy_(kv[:, block_ids].transpose(0, 1))


def _unpack_oracle(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    kv[:, block_ids] = payload.transpose(0, 1)


def _product(shapes: list, dtypes: list[torch.dtype]) -> Iterator[tuple]:
    return ((shape, dtype) for shape in shapes for dtype in dtypes)


def launcher(case: Case) -> Callable:
    """Import the case's Triton launcher."""
    module_name, function = case.triton.split(":")
    module: ModuleType = __import__(module_name, fromlist=[function])
    return getattr(module, function)


FLOATS = [torch.float32, torch.bfloat16]


def parity_cases() -> list[Case]:
    """Small odd shapes: lengths around block, tile and split borders, every group size."""
    decode = [
        PagedShape((1, 1, 1), (1, 17, 63), 1, 1, 64, 16),
        PagedShape((1, 1), (123, 16), 3, 3, 64, 16),
        PagedShape((1,), (1000,), 1, 8, 128, 64),
        PagedShape((1, 1, 1), (256, 257, 64), 2, 4, 128, 16),
    ]
    runs = [
        PagedShape((1,), (1,), 1, 1, 64, 16),
        PagedShape((63, 17), (63, 123), 3, 3, 64, 16),
        PagedShape((5, 1, 40), (130, 300, 1000), 2, 4, 128, 64),
        PagedShape((4, 4), (259, 7), 1, 8, 64, 16),
    ]
    return [
        *norm_cases([(1, 64), (17, 63), (3, 576), (5, 4096)], FLOATS),
        *swiglu_cases([(1, 17), (63, 123)], FLOATS),
        *rope_cases([(1, 1, 1, 64, 16), (17, 3, 3, 64, 16), (63, 2, 4, 128, 64)], FLOATS),
        *attention_cases("paged_decode_attention", decode, FLOATS),
        *attention_cases("paged_prefill_attention", runs, FLOATS),
        *attention_cases("verify_attention", runs, FLOATS),
        *attention_cases("draft_attention", runs, FLOATS),
        *pack_cases([(1, 1, 1, 16, 64), (7, 3, 3, 16, 64), (3, 2, 8, 64, 128)], FLOATS),
    ]


def benchmark_cases(device: torch.device) -> list[Case]:
    """Serving shapes: SmolLM2-135M on a CPU, Llama-3.1-8B on a GPU; one layer, for pack all of them."""
    if device.type == "cpu":
        kv, hidden, ffn, layers, context = (3, 3, 64, 16), 576, 1536, 30, 512
        batches, tokens = (1, 8, 32), (1, 8, 512)
    else:
        kv, hidden, ffn, layers, context = (8, 4, 128, 64), 4096, 14336, 32, 2048
        batches, tokens = (1, 8, 32, 128), (1, 64, 8192)
    dtype = [torch.bfloat16]
    num_kv_heads, _, head_dim, block_size = kv
    decode = [PagedShape((1,) * b, (context,) * b, *kv) for b in batches]
    verify_runs = [PagedShape((5,) * b, (context,) * b, *kv) for b in batches[:2]]
    chunks = [PagedShape((context,), (length,), *kv) for length in (context, 2 * context)]
    return [
        *norm_cases([(t, hidden) for t in tokens], dtype),
        *swiglu_cases([(t, ffn) for t in tokens], dtype),
        *rope_cases([(t, *kv) for t in tokens], dtype),
        *attention_cases("paged_decode_attention", decode, dtype),
        *attention_cases("verify_attention", verify_runs, dtype),
        *attention_cases("paged_prefill_attention", chunks, dtype),
        *pack_cases([(32, layers, num_kv_heads, block_size, head_dim)], dtype),
    ]
