"""Download of a model from the Hugging Face hub. Torch-free."""

from pathlib import Path

import tenacity
from huggingface_hub import errors, snapshot_download

from forebay.errors import NotFound, Unavailable

# Weights in safetensors and what describes them; nothing that could run code.
FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
NUM_ATTEMPTS = 3


def download_snapshot(name: str) -> Path:
    """Folder of a complete snapshot; raises NotFound or, with what was tried, Unavailable."""
    try:
        return Path(_snapshot(name))
    except errors.GatedRepoError as error:
        raise NotFound(
            f"Hugging Face model {name} needs access; accept its terms and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(f"no folder {Path(name).absolute()} and no Hugging Face model {name}") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise Unavailable(
            f"model {name}: no folder {Path(name).absolute()}, no snapshot in the Hugging Face cache, "
            f"and {NUM_ATTEMPTS} downloads failed: {reason}"
        ) from error


@tenacity.retry(
    stop=tenacity.stop_after_attempt(NUM_ATTEMPTS),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
    retry=tenacity.retry_if_not_exception_type((errors.RepositoryNotFoundError, errors.HFValidationError)),
    reraise=True,
)
def _snapshot(name: str) -> str:
    """Resumes where an earlier attempt broke off; without network, finds an earlier snapshot."""
    return snapshot_download(name, allow_patterns=FILES)
