"""The models that workers serve, with what the gateway itself needs of each: tokenizer and template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from forebay.errors import ForebayError, InvalidArgument, ModelNotFound, Unavailable, suggest
from forebay.kv.hashing import prefix_root
from forebay.v1.common_pb2 import ModelInfo

from .chat_template import ChatTemplate
from .tokenizer import Tokenizer

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """One (name, fingerprint)."""

    info: ModelInfo
    root: bytes
    tokenizer: Tokenizer
    template: ChatTemplate | None

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.info.model


class Models:
    """Learns models from workers' identities; `folder` overrides where tokenizers are read."""

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self._models: dict[bytes, ServedModel] = {}
        self._failed: set[bytes] = set()
        self._loading: dict[bytes, asyncio.Lock] = {}

    async def learn(self, info: ModelInfo) -> bool:
        """Load what the model needs, once; False (and one log line) where it cannot be loaded."""
        if not info.fingerprint:
            return False
        if info.fingerprint in self._models:
            return True
        async with self._loading.setdefault(info.fingerprint, asyncio.Lock()):
            if info.fingerprint not in self._models:
                await self._load(info)
        return info.fingerprint in self._models

    def find(self, name: str | None, is_served: Callable[[bytes], bool]) -> ServedModel:
        """The model of that name, or the only one where `name` is None; a living one if there are several."""
        names = self.names()
        if not names:
            raise Unavailable("no worker has come up yet", reason="NO_WORKER")
        if name is None:
            if len(names) > 1:
                raise InvalidArgument(f"several models are served, name one of {names}", field="model")
            name = names[0]
        found = [model for model in self._models.values() if model.name == name]
        if not found:
            served = f"; served: {', '.join(names)}"
            raise ModelNotFound(f"model {name!r} is not served{served}{suggest(name, names)}")
        return next((model for model in found if is_served(model.info.fingerprint)), found[0])

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({model.name for model in self._models.values()})

    def served(self, is_served: Callable[[bytes], bool]) -> list[ServedModel]:
        """Models with living workers, by name."""
        living = [model for model in self._models.values() if is_served(model.info.fingerprint)]
        return sorted(living, key=lambda model: model.name)

    async def _load(self, info: ModelInfo) -> None:
        folder = Path(self._folder or info.folder)
        try:
            model = await asyncio.to_thread(_load, info, folder)
        except (ForebayError, OSError, ValueError) as error:
            if info.fingerprint not in self._failed:
                log.error("model_not_loaded", model=info.model, folder=str(folder), error=str(error))
            self._failed.add(info.fingerprint)
            return
        self._models[info.fingerprint] = model
        log.info("model_learned", model=info.model, fingerprint=info.fingerprint.hex()[:16])


def _load(info: ModelInfo, folder: Path) -> ServedModel:
    tokenizer = Tokenizer.from_folder(folder, info.vocab_size)
    return ServedModel(info, prefix_root(info.fingerprint), tokenizer, ChatTemplate.from_folder(folder))
