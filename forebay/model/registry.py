"""Which class runs which architecture, and loading a folder into one."""

from collections.abc import Callable
from pathlib import Path

from forebay.errors import ConfigError
from forebay.model.attention import Model
from forebay.model.config import ModelConfig
from forebay.model.llama import Llama
from forebay.model.qwen import Qwen3
from forebay.model.weights import DTYPES, Checkpoint

ARCHITECTURES: dict[str, type[Llama]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Qwen3,
}


def load_model(
    folder: Path, dtype: str, device: str, progress: Callable[[int, int], None] | None = None
) -> Model:
    """Read a Hugging Face folder; `progress` gets (bytes done, bytes in all) after each tensor."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    config = ModelConfig.from_folder(folder)
    checkpoint = Checkpoint(folder, DTYPES[dtype], device, progress)
    model = ARCHITECTURES[config.architecture](config, checkpoint)
    checkpoint.finish(has_tied_head=config.tie_embeddings)
    return model
