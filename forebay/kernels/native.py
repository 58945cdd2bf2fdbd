"""CPU kernels in C (native.c), compiled once per machine with the system's compiler and kept in the cache.

Without a compiler, or for shapes that the kernels do not take, `handles` is False and the torch references
serve. FOREBAY_NATIVE=0 turns the kernels off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from torch import Tensor

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fopenmp")
LANES, MAX_HEAD_DIM = 16, 256
_COMPILE_TIMEOUT_S = 60.0
_NORM = (*[c_void_p] * 4, *[c_long] * 2, c_float, c_int)
_SWIGLU = (*[c_void_p] * 2, *[c_long] * 2, c_int)
_ROPE = (*[c_void_p] * 6, *[c_long] * 5, c_int)
_KV = (c_void_p, c_long, c_void_p, c_void_p, c_long, c_void_p, c_void_p)
_ATTENTION = (*_KV, *[c_long] * 6, c_float, c_int, c_void_p)


class Library:
    """The compiled functions; each takes pointers and sizes and leaves the GIL to others meanwhile."""

    def __init__(self, path: Path) -> None:
        """OSError if the library does not load."""
        library = ctypes.CDLL(str(path))
        self.norm = _function(library, "forebay_norm", _NORM)
        self.swiglu = _function(library, "forebay_swiglu", _SWIGLU)
        self.rope_write = _function(library, "forebay_rope_write", _ROPE)
        self.attention = _function(library, "forebay_attention", _ATTENTION)


def _function(library: ctypes.CDLL, name: str, types: Sequence[type[Any]]) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = list(types), None
    return cast(Callable[..., None], function)


def handles(x: Tensor, *sizes: int) -> bool:
    """Whether x is a type that the kernels take, every size is whole vectors, and they could be compiled."""
    is_known = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32)
    return is_known and not any(size % LANES for size in sizes) and library() is not None


def handles_heads(x: Tensor, head_dim: int) -> bool:
    """`handles` for heads, whose halves are whole vectors."""
    return head_dim <= MAX_HEAD_DIM and handles(x, head_dim // 2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of reference.rms_norm."""
    x = x.contiguous()
    out, size = torch.empty_like(x), weight.shape[0]
    _loaded().norm(
        x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), x.numel() // size, size, eps, _is_bf16(x)
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Twin of reference.add_rms_norm."""
    x, total = x.contiguous(), residual.clone(memory_format=torch.contiguous_format)
    out, size = torch.empty_like(x), weight.shape[0]
    _loaded().norm(
        x.data_ptr(),
        total.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        x.numel() // size,
        size,
        eps,
        _is_bf16(x),
    )
    return out, total


def swiglu(gate_up: Tensor) -> Tensor:
    """Twin of reference.swiglu."""
    gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    _loaded().swiglu(gate_up.data_ptr(), out.data_ptr(), rows, size, _is_bf16(gate_up))
    return out


def rope_write_kv(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, kv_layer: Tensor, num_heads: int
) -> Tensor:
    """Twin of reference.rope_write_kv; a padding row writes nothing."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    assert positions.dtype == slots.dtype == torch.int64 and qkv.is_contiguous() and kv_layer.is_contiguous()
    _loaded().rope_write(
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        kv_layer.data_ptr(),
        len(qkv),
        num_heads,
        num_kv_heads,
        block_size,
        head_dim,
        _is_bf16(qkv),
    )
    return qkv.view(len(qkv), -1, head_dim)[:, :num_heads]


def paged_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    max_short_run: int,
) -> Tensor:
    """Causal attention of a varlen batch.

    Runs of up to `max_short_run` queries are attended query by query, with the bits of one-by-one decode;
    longer ones in tiles, with the same bits whole or in chunks.
    """
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    out = q.new_empty(q.shape)
    assert block_tables.dtype == cu_query_lens.dtype == context_lens.dtype == torch.int32
    assert kv_layer.is_contiguous() and q.stride(1) == head_dim and block_tables.stride(1) == 1
    _loaded().attention(
        q.data_ptr(),
        q.stride(0),
        kv_layer.data_ptr(),
        block_tables.data_ptr(),
        block_tables.stride(0),
        cu_query_lens.data_ptr(),
        context_lens.data_ptr(),
        len(context_lens),
        q.shape[1],
        num_kv_heads,
        block_size,
        head_dim,
        max_short_run,
        scale,
        _is_bf16(q),
        out.data_ptr(),
    )
    return out


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _loaded() -> Library:
    found = library()
    assert found is not None, "ask `handles` first"
    return found


@functools.cache
def library() -> Library | None:
    """The compiled kernels; None, with a line in the log, if this machine cannot have them."""
    if os.environ.get("FOREBAY_NATIVE") == "0":
        return None
    try:
        return Library(_compiled())
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("native_kernels_off", error=str(error))
        return None


def _compiled() -> Path:
    """Path of the shared library of this source, these flags and this machine; compiles it on first use."""
    identity = "\0".join((SOURCE.read_text(), *FLAGS, platform.machine(), _cpu_flags()))
    path = _cache_folder() / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _compile(Path(folder))
            (Path(folder) / "kernels.so").replace(path)  # at once: other processes compile the same
    return path


def _compile(folder: Path) -> None:
    """Object and library apart, so that no second OpenMP runtime is linked beside torch's."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler (gcc) on the PATH")
    source, library = str(folder / "kernels.o"), str(folder / "kernels.so")
    for command in ([*FLAGS, "-c", str(SOURCE), "-o", source], ["-shared", source, "-o", library, "-lm"]):
        subprocess.run([compiler, *command], check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)


def _cache_folder() -> Path:
    root = os.environ.get("FOREBAY_CACHE")
    if root:
        return Path(root) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay" / "kernels"


def _cpu_flags() -> str:
    """What the processor can do, as the kernel lists it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
