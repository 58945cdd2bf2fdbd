"""A tiny model folder, and fake workers that speak the real wire: the real ones are tested end to end."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import grpc
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from forebay.rpc.admin import SERVICE_NAME, AdminServicer, new_epoch
from forebay.rpc.server import Server, Service
from forebay.types import FinishReason
from forebay.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 4,
    "def f(x):\n    return x + 1\n" * 4,
    "héllo wörld 你好 🎉",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = """{% for m in messages %}
{% if m.role == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
BLOCK_SIZE, MAX_CONTEXT = 16, 1024
EOS = 2


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_folder(folder: Path) -> Path:
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def model_info(folder: Path, name: str = "tiny") -> common_pb2.ModelInfo:
    return common_pb2.ModelInfo(
        model=name,
        fingerprint=name.encode().ljust(32, b"\0"),
        block_size=BLOCK_SIZE,
        max_context=MAX_CONTEXT,
        vocab_size=512,
        eos_token_ids=[EOS],
        block_bytes=1 << 16,
        folder=str(folder),
    )


class FakeWorker:
    """Server shell of a fake: start on a port (0 picks one), stop at once."""

    role = ""

    def __init__(self, info: common_pb2.ModelInfo) -> None:
        self.info = info
        self.load = admin_pb2.GetLoadResponse(num_blocks=1000)
        self.address = ""

    def register(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    async def start(self, address: str = "127.0.0.1:0") -> "FakeWorker":
        self._server = Server(address)
        await self._server.start()
        await self._server.add(Service(add=self._add, names=[SERVICE_NAME], close=self.stop))
        self.address = f"127.0.0.1:{self._server.port}"
        return self

    async def stop(self) -> None:
        await self._server.server.stop(0)

    def _add(self, server: grpc.aio.Server) -> None:
        async def check(idle: bool) -> None:
            return None

        admin = AdminServicer(self.role, new_epoch(), self.info, lambda: self.load, check)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        self.register(server)


class FakePrefill(FakeWorker, prefill_pb2_grpc.PrefillServiceServicer):
    """Answers with `first_tokens(request)`; or fails as `mode` says, or hangs until `release` is set."""

    role = "prefill"

    def __init__(self, info: common_pb2.ModelInfo) -> None:
        super().__init__(info)
        self.mode = "ok"
        self.release = asyncio.Event()
        self.first_tokens: Callable[[prefill_pb2.PrefillRequest], list[int]] = lambda r: (
            [10] * (r.sampling.n or 1)
        )
        self.requests: list[prefill_pb2.PrefillRequest] = []
        self.deadlines: list[float | None] = []
        self.num_live = 0

    def register(self, server: grpc.aio.Server) -> None:
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self, server)

    async def Prefill(self, request, context):
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.num_live += 1
        try:
            num_blocks = len(request.token_ids) // BLOCK_SIZE
            if self.mode == "refuse":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "no")
            yield prefill_pb2.PrefillEvent(blocks_ready=prefill_pb2.BlocksReady(num_blocks=num_blocks))
            if self.mode == "die":
                await context.abort(grpc.StatusCode.INTERNAL, "died")
            if self.mode == "end":
                return
            if self.mode == "hang":
                await self.release.wait()
            ids = self.first_tokens(request)
            logprobs = [common_pb2.TokenLogprobs(token_id=i, logprob=-1.0) for i in ids]
            yield prefill_pb2.PrefillEvent(
                first_token=prefill_pb2.FirstToken(
                    token_ids=ids,
                    logprobs=logprobs if request.sampling.HasField("logprobs") else [],
                    num_local_cached_tokens=3,
                    num_store_cached_tokens=4,
                    queue_ms=0.1,
                    pull_ms=0.1,
                    compute_ms=0.1,
                    prefill_tokens_per_s=1234.0,
                    num_blocks_ready=num_blocks,
                )
            )
        finally:
            self.num_live -= 1


class FakeSlot:
    """One attached request at the fake decode."""

    def __init__(self, attach: decode_pb2.Attach) -> None:
        self.attach = attach
        self.num_ready = 0
        self.outputs: dict[int, list[int]] = {}
        self.task: asyncio.Task | None = None
        self.cancelled: set[int] = set()


class FakeDecode(FakeWorker, decode_pb2_grpc.DecodeServiceServicer):
    """Emits `script(attach, choice)` after the first tokens, `width` tokens a frame, then Finished."""

    role = "decode"

    def __init__(self, info: common_pb2.ModelInfo) -> None:
        super().__init__(info)
        self.script: Callable[[decode_pb2.Attach, int], list[int]] = lambda attach, choice: [11, 12, 13]
        self.width, self.delay_s = 1, 0.0
        self.end = decode_pb2.Finished(reason=FinishReason.STOP, num_draft_tokens=5, num_accepted_tokens=2)
        self.slots: dict[int, FakeSlot] = {}
        self.commands: list[decode_pb2.MuxRequest] = []
        self.streams: list[grpc.aio.ServicerContext] = []

    def register(self, server: grpc.aio.Server) -> None:
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self, server)

    def starts(self) -> list[decode_pb2.Start]:
        return [c.start for c in self.commands if c.HasField("start")]

    async def Mux(self, request_iterator, context):
        frames: asyncio.Queue = asyncio.Queue()
        self.streams.append(context)
        reader = asyncio.create_task(self._read(request_iterator, frames))
        try:
            while (frame := await frames.get()) is not None:
                yield frame
        finally:
            reader.cancel()
            for slot in self.slots.values():
                if slot.task:
                    slot.task.cancel()
            self.slots.clear()

    async def _read(self, commands, frames) -> None:
        async for command in commands:
            self.commands.append(command)
            kind = command.WhichOneof("command")
            if kind == "attach":
                self.slots[command.slot] = FakeSlot(command.attach)
            slot = self.slots.get(command.slot)
            if slot is None:
                continue
            if kind == "ready":
                slot.num_ready = command.ready.num_blocks
            elif kind == "start":
                slot.task = asyncio.create_task(self._run(command.slot, slot, command.start, frames))
            elif kind == "cancel" and command.cancel.HasField("choice"):
                slot.cancelled.add(command.cancel.choice)
            elif kind == "cancel":
                if slot.task:
                    slot.task.cancel()
                del self.slots[command.slot]

    async def _run(self, number: int, slot: FakeSlot, start: decode_pb2.Start, frames: asyncio.Queue) -> None:
        attach = slot.attach
        num_choices = attach.sampling.n or 1
        started = decode_pb2.Started(
            queue_ms=0.1, pull_ms=0.1, num_local_cached_tokens=5, num_pulled_tokens=6
        )
        frames.put_nowait(decode_pb2.StepFrame(spills=[decode_pb2.Spill(slot=number, started=started)]))
        outputs = {c: list(self.script(attach, c)) for c in range(num_choices)}
        if not start.first_token_ids:
            outputs = {c: [10, *ids] for c, ids in outputs.items()}
        while any(outputs.values()):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            frames.put_nowait(self._step(number, slot, outputs))
            await asyncio.sleep(0)
        ends = [decode_pb2.Spill(slot=number, choice=c, finished=self.end) for c in range(num_choices)]
        frames.put_nowait(decode_pb2.StepFrame(spills=ends))
        self.slots.pop(number, None)

    def _step(self, number: int, slot: FakeSlot, outputs: dict[int, list[int]]) -> decode_pb2.StepFrame:
        frame = decode_pb2.StepFrame(num_running=1)
        choices = bytearray()
        for choice, ids in outputs.items():
            if choice in slot.cancelled:
                ids.clear()
            taken = ids[: self.width]
            del ids[: self.width]
            frame.slots.extend([number] * len(taken))
            frame.token_ids.extend(taken)
            choices.extend([choice] * len(taken))
            if slot.attach.sampling.HasField("logprobs"):
                frame.spills.extend(
                    decode_pb2.Spill(
                        slot=number,
                        choice=choice,
                        logprobs=common_pb2.TokenLogprobs(token_id=i, logprob=-2.0),
                    )
                    for i in taken
                )
        frame.choices = bytes(choices)
        return frame
