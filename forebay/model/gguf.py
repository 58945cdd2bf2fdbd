"""One-time conversion of a GGUF file to a Hugging Face folder: one format is served, not two. Torch-free.

Each tensor keeps its exact values: float32, float16 and bfloat16 are copied, quantised ones become float32,
since a 4-bit code times a float16 scale plus a float16 offset fits neither 16-bit format.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from forebay.errors import AlreadyExists, NotFound, UnsupportedModel
from forebay.model.gguf_tokenizer import write_tokenizer

Progress = Callable[[int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
REQUIRED_FIELDS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
# Tensor types stored as they are: (safetensors name, numpy view of the raw bytes; numpy has no bfloat16).
PLAIN_KINDS = {Kind.F32: ("F32", np.float32), Kind.F16: ("F16", np.float16), Kind.BF16: ("BF16", np.uint16)}
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def import_gguf(gguf_path: Path, out_folder: Path, progress: Progress | None = None) -> None:
    """Write config, weights and tokenizer to `out_folder`, which appears whole or not at all."""
    if out_folder.exists():
        raise AlreadyExists(f"{out_folder} exists already; remove it or choose another folder")
    reader = _open(gguf_path)
    partial = out_folder.with_name(f"{out_folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_config(reader, partial)
        write_tokenizer(metadata(reader), partial)
        _write_weights(reader, partial / "model.safetensors", progress or (lambda done, total: None))
        partial.rename(out_folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open(path: Path) -> GGUFReader:
    if not path.is_file():
        raise NotFound(f"{path} does not exist")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise UnsupportedModel(f"{path} is damaged or not a GGUF file: {error}") from error


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """The key-value section as plain Python values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def _write_config(reader: GGUFReader, folder: Path) -> None:
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names:
        raise UnsupportedModel(
            "GGUF files with scaled rope frequencies are not supported; use safetensors weights"
        )
    fields = metadata(reader)
    config = config_fields(fields, is_tied="output.weight" not in names)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def config_fields(fields: dict[str, Any], is_tied: bool) -> dict[str, Any]:
    """GGUF metadata as the fields of config.json."""
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if fields.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise UnsupportedModel("GGUF files with rope scaling are not supported; use safetensors weights")
    if absent := [name for name in REQUIRED_FIELDS if f"{kind}.{name}" not in fields]:
        raise UnsupportedModel(f"GGUF metadata lacks {kind}.{absent[0]}")
    num_heads, hidden_size = fields[f"{kind}.attention.head_count"], fields[f"{kind}.embedding_length"]
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "num_hidden_layers": fields[f"{kind}.block_count"],
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.get(f"{kind}.attention.head_count_kv", num_heads),
        "head_dim": fields.get(f"{kind}.attention.key_length", hidden_size // num_heads),
        "intermediate_size": fields[f"{kind}.feed_forward_length"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": fields[f"{kind}.context_length"],
        "rms_norm_eps": _shortest(fields[f"{kind}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": fields.get(f"{kind}.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }


def _shortest(value: float) -> float:
    """The decimal that was meant: metadata holds float32, so 1e-5 reads back as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_weights(reader: GGUFReader, path: Path, progress: Progress) -> None:
    """Stream tensors into one safetensors file: a length, a JSON header, then the data in header order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        name, itemsize = PLAIN_KINDS.get(tensor.tensor_type, ("F32", np.float32))[0], _itemsize(tensor)
        start, end = end, end + int(tensor.n_elements) * itemsize
        shape = [int(size) for size in reversed(tensor.shape)]
        header[_tensor_name(tensor.name)] = {"dtype": name, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    num_bytes_done = 0
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in _arrays(reader):
            array.tofile(file)
            num_bytes_done += array.nbytes
            progress(num_bytes_done, end)


def _itemsize(tensor: ReaderTensor) -> int:
    return np.dtype(PLAIN_KINDS.get(tensor.tensor_type, ("F32", np.float32))[1]).itemsize


def _tensor_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    prefix, layer, stem, suffix = (name.split(".") + [""] * 4)[:4]
    if prefix != "blk" or stem not in LAYER_NAMES:
        raise UnsupportedModel(f"GGUF tensor {name} is not supported")
    return f"model.layers.{layer}.{LAYER_NAMES[stem]}.{suffix}"


def _arrays(reader: GGUFReader) -> Iterator[Array]:
    """Each tensor's values, in file order, with q and k rows in half-rotation order."""
    fields = metadata(reader)
    num_heads = {}
    if fields["general.architecture"] == "llama":
        num_heads["attn_q"] = fields["llama.attention.head_count"]
        num_heads["attn_k"] = fields.get("llama.attention.head_count_kv", num_heads["attn_q"])
    for tensor in reader.tensors:
        array = _values(tensor)
        stem = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        yield unpermute(array, num_heads[stem]) if stem in num_heads else array


def _values(tensor: ReaderTensor) -> Array:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if tensor.tensor_type in PLAIN_KINDS:
        array: Array = tensor.data.view(PLAIN_KINDS[tensor.tensor_type][1]).reshape(shape)
        return array
    return dequantize(tensor.data, tensor.tensor_type).reshape(shape)


def unpermute(array: Array, num_heads: int) -> Array:
    """Undo GGML's interleaved rope order: rows (pair, half) of each head back to (half, pair)."""
    heads = array.reshape(num_heads, array.shape[0] // num_heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(array.shape)
