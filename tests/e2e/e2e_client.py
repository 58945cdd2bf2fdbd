"""A small synchronous client of the gateway for end-to-end tests."""

import time
from dataclasses import dataclass, field

import grpc

from forebay.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc


@dataclass
class Choice:
    """What one choice of a completion said."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[common_pb2.TokenLogprobs] = field(default_factory=list)
    finish_reason: int = 0


@dataclass
class Completion:
    """A whole answer."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: inference_pb2.Usage | None = None
    receipt: inference_pb2.Receipt | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def text(self) -> str:
        return self.choices[0].text

    def add(self, piece) -> None:
        choice = self.choices.setdefault(piece.choice, Choice())
        choice.token_ids.extend(piece.token_ids)
        choice.text += piece.text
        choice.logprobs.extend(piece.logprobs)
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        if piece.HasField("usage"):
            self.usage = piece.usage
        if piece.HasField("receipt"):
            self.receipt = piece.receipt


class Client:
    """Generate and Chat against one gateway address."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def request(
        self, prompt: str | list[int], stop: tuple[str, ...] = (), **sampling
    ) -> inference_pb2.GenerateRequest:
        sampling.setdefault("temperature", 0)
        sampling.setdefault("max_tokens", 32)
        message = inference_pb2.GenerateRequest(sampling=common_pb2.SamplingParams(**sampling), stop=stop)
        if isinstance(prompt, str):
            message.text = prompt
        else:
            message.token_ids.ids.extend(prompt)
        return message

    def stream(self, prompt: str | list[int], timeout: float = 120, **options):
        return self.stub.Generate(self.request(prompt, **options), timeout=timeout)

    def generate(self, prompt: str | list[int], **options) -> Completion:
        return collect(self.stream(prompt, **options))

    def chat(self, *contents: str, timeout: float = 120, **sampling) -> Completion:
        roles = ["user", "assistant"] * len(contents)
        messages = [
            inference_pb2.ChatMessage(role=r, content=c) for r, c in zip(roles, contents, strict=False)
        ]
        sampling.setdefault("temperature", 0)
        sampling.setdefault("max_tokens", 32)
        request = inference_pb2.ChatRequest(messages=messages, sampling=common_pb2.SamplingParams(**sampling))
        return collect(self.stub.Chat(request, timeout=timeout))

    def tokenize(self, text: str) -> list[int]:
        return list(self.stub.Tokenize(inference_pb2.TokenizeRequest(text=text)).token_ids)

    def close(self) -> None:
        self.channel.close()


def collect(stream) -> Completion:
    completion = Completion()
    for piece in stream:
        completion.add(piece)
    return completion


def check_idle(addresses: list[str], within_s: float = 5.0) -> None:
    """Every service is back to nothing running, referenced or leased; raises the last complaint otherwise."""
    deadline = time.monotonic() + within_s
    for address in addresses:
        with grpc.insecure_channel(address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            while True:
                try:
                    stub.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True), timeout=5)
                    break
                except grpc.RpcError as error:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{address}: {error.details()}") from error
                    time.sleep(0.05)
