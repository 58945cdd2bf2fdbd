"""Commands that talk to a running gateway: generate, chat, models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.errors import InvalidArgument

if TYPE_CHECKING:
    from forebay.cli.client import Answer, Piece
    from forebay.v1 import inference_pb2 as pb

GENERATE_EXAMPLES = """[b]Examples[/b]

forebay generate "Once upon a time" --max-tokens 40\n
cat prompt.txt | forebay generate --temperature 0 --json\n
forebay generate --token-ids 1,2,3 --n 2 --seed 7 --logprobs 3 --json\n
forebay generate "Count:" --stop "\\n" --logit-bias 15=-100
"""
CHAT_EXAMPLES = """[b]Examples[/b]

forebay chat\n
forebay chat "Why is the sky blue?" --max-tokens 100
"""
INPUT, SAMPLING, ENDING, OUTPUT = "Input", "Sampling", "Ending", "Output"
Gateway = Annotated[
    str, typer.Option("--gateway", envvar="FOREBAY_GATEWAY", help="host:port of the gateway.")
]
ModelName = Annotated[str | None, typer.Option("--model", help="Model name; default: the only one served.")]
DEFAULT_GATEWAY = "127.0.0.1:50051"


def _option(help: str, panel: str, *names: str) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, rich_help_panel=panel)


MaxTokens = Annotated[int | None, _option("Tokens to generate at most.", ENDING)]
Temperature = Annotated[float | None, _option("0 is greedy.", SAMPLING)]
Seed = Annotated[int | None, _option("Makes the output repeatable.", SAMPLING)]


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; default: standard input.")] = None,
    file: Annotated[Path | None, _option("Read the prompt from a file.", INPUT)] = None,
    token_ids: Annotated[str | None, _option("The prompt as token ids: 1,2,3.", INPUT)] = None,
    gateway: Gateway = DEFAULT_GATEWAY,
    model: ModelName = None,
    temperature: Temperature = None,
    top_p: Annotated[float | None, _option("Keep this much probability.", SAMPLING)] = None,
    top_k: Annotated[int | None, _option("Keep the k most likely tokens.", SAMPLING)] = None,
    min_p: Annotated[
        float | None, _option("Keep tokens this likely, relative to the best.", SAMPLING)
    ] = None,
    seed: Seed = None,
    n: Annotated[int | None, _option("Number of completions.", SAMPLING, "--n", "-n")] = None,
    repetition_penalty: Annotated[float | None, _option("Over prompt and output.", SAMPLING)] = None,
    presence_penalty: Annotated[float | None, _option("Over the output.", SAMPLING)] = None,
    frequency_penalty: Annotated[float | None, _option("Over the output, by count.", SAMPLING)] = None,
    logit_bias: Annotated[list[str] | None, _option("TOKEN_ID=BIAS; repeatable.", SAMPLING)] = None,
    max_tokens: MaxTokens = None,
    min_tokens: Annotated[int | None, _option("Tokens before a stop token counts.", ENDING)] = None,
    stop: Annotated[list[str] | None, _option("String that ends the output; repeatable.", ENDING)] = None,
    stop_token_ids: Annotated[str | None, _option("Token ids that end the output: 1,2.", ENDING)] = None,
    ignore_eos: Annotated[
        bool, _option("Go on past end-of-sequence tokens.", ENDING, "--ignore-eos")
    ] = False,
    logprobs: Annotated[int | None, _option("Report this many alternatives (with --json).", OUTPUT)] = None,
    as_json: Annotated[bool, _option("Print one line of JSON at the end.", OUTPUT, "--json")] = False,
) -> None:
    """Continue a prompt; the text appears as it is generated."""
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    request = _generate_request(given)
    from forebay.cli.client import Client

    with Client(gateway) as client:
        pieces = client.generate(request)
        answer = collect(pieces, is_quiet=as_json or (n or 1) > 1)
    if as_json:
        typer.echo(json.dumps(answer.to_json(with_logprobs=logprobs is not None)))
    elif len(answer.choices) > 1:
        for index, choice in sorted(answer.choices.items()):
            typer.echo(f"[{index}] {choice.text}")
    else:
        typer.echo()


def chat(
    message: Annotated[str | None, typer.Argument(help="Ask this and end; default: a conversation.")] = None,
    gateway: Gateway = DEFAULT_GATEWAY,
    model: ModelName = None,
    system: Annotated[str | None, _option("System message.", INPUT)] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    receipt: Annotated[bool, _option("Show where the time went.", OUTPUT, "--receipt/--no-receipt")] = True,
) -> None:
    """Talk to a model: in a conversation, or with one message. /reset forgets, /quit or Ctrl-D ends."""
    from forebay.cli.chat import Conversation
    from forebay.cli.client import Client

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in sampling.items() if value is not None}
    with Client(gateway) as client:
        conversation = Conversation(
            client, model, utf8("--system", system or ""), given, show_receipt=receipt
        )
        if message is not None:
            conversation.ask(utf8("message", message))
        else:
            conversation.loop()


def models(gateway: Gateway = DEFAULT_GATEWAY) -> None:
    """List the served models."""
    from rich.console import Console
    from rich.table import Table

    from forebay.cli.client import Client

    with Client(gateway) as client:
        served = client.models()
    table = Table("model", "dtype", "context", "vocabulary", "block", "fingerprint")
    for info in served:
        numbers = (str(info.max_context), str(info.vocab_size), str(info.block_size))
        table.add_row(info.model, info.dtype, *numbers, info.fingerprint.hex()[:12])
    Console().print(table)


def health(
    address: Annotated[str, typer.Argument(help="host:port of any service.")] = DEFAULT_GATEWAY,
    service: Annotated[str, typer.Option(help="Full gRPC service name; default: the process.")] = "",
) -> None:
    """Ask a service for its state; the exit code is 0 only for SERVING."""
    from forebay.cli.client import health_of

    state = health_of(address, service)
    typer.echo(state)
    raise typer.Exit(0 if state == "SERVING" else 1)


SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "n", "max_tokens", "min_tokens", "ignore_eos"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs"),
)


def _generate_request(given: dict[str, Any]) -> pb.GenerateRequest:
    """From the command's options, those that were given."""
    from forebay.v1 import inference_pb2

    request = inference_pb2.GenerateRequest()
    if "model" in given:
        request.model = utf8("--model", given["model"])
    request.sampling.CopyFrom(sampling_of({k: v for k, v in given.items() if k in SAMPLING_FIELDS}))
    request.sampling.stop_token_ids.extend(_ids("--stop-token-ids", given.get("stop_token_ids", "")))
    for entry in given.get("logit_bias", ()):
        token_id, bias = _bias(entry)
        request.sampling.logit_bias[token_id] = bias
    request.stop.extend(utf8("--stop", text) for text in given.get("stop", ()))
    if "token_ids" in given:
        request.token_ids.ids.extend(_ids("--token-ids", given["token_ids"]))
    else:
        request.text = _prompt(given.get("prompt"), given.get("file"))
    return request


def sampling_of(given: dict[str, Any]) -> Any:
    """SamplingParams with the given fields set; a value that its type cannot hold is named."""
    from forebay.v1 import common_pb2

    sampling = common_pb2.SamplingParams()
    for name, value in given.items():
        try:
            setattr(sampling, name, value)
        except ValueError as error:
            raise typer.BadParameter(f"--{name.replace('_', '-')}: {value} is out of range") from error
    return sampling


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None:
        return utf8("prompt", prompt)
    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("no prompt: give it as argument, with --file, or on standard input")
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--file: {error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"not valid UTF-8 at byte {error.start}", field=str(file or "standard input")
        ) from error


def utf8(name: str, text: str) -> str:
    """`text` itself; arguments that were not UTF-8 have lone surrogates, which no message can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"not valid Unicode at character {error.start}", field=name) from error
    return text


def _ids(name: str, text: str) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{name}: {text!r} is not a list of integers like 1,2,3") from error
    if bad := [token_id for token_id in ids if not 0 <= token_id < 2**32]:
        raise typer.BadParameter(f"{name}: {bad[0]} is not a token id")
    return ids


def _bias(entry: str) -> tuple[int, float]:
    token_id, _, bias = entry.partition("=")
    try:
        return _ids("--logit-bias", token_id)[0], float(bias)
    except (ValueError, IndexError) as error:
        raise typer.BadParameter(f"--logit-bias: {entry!r} is not TOKEN_ID=BIAS") from error


def collect(pieces: Iterable[Piece], *, is_quiet: bool) -> Answer:
    """Gather a stream; unless quiet, its text goes to standard output as it comes."""
    from forebay.cli.client import Answer

    answer = Answer()
    for piece in pieces:
        answer.add(piece)
        if not is_quiet and piece.text:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    return answer
