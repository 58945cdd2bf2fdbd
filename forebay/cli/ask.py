"""Commands that talk to a running gateway: generate, chat, models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from forebay.errors import InvalidArgument

if TYPE_CHECKING:
    from forebay.client import Completion, Sampling, Stream

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
# The client's own, which is imported late.
DEFAULT_TIMEOUT_S = 600.0


def _option(help: str, panel: str, *names: str) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, rich_help_panel=panel)


MaxTokens = Annotated[int | None, _option("Tokens to generate at most.", ENDING)]
Temperature = Annotated[float | None, _option("0 is greedy.", SAMPLING)]
Timeout = Annotated[float, _option("Seconds that the answer may take.", ENDING)]
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
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    logprobs: Annotated[int | None, _option("Report this many alternatives (with --json).", OUTPUT)] = None,
    as_json: Annotated[bool, _option("Print one line of JSON at the end.", OUTPUT, "--json")] = False,
) -> None:
    """Continue a prompt; the text appears as it is generated."""
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    call = _arguments(given)
    from forebay.client import Forebay

    with Forebay(gateway, timeout_s=timeout) as client:
        answer = collect(client.generate(**call), is_quiet=as_json or (n or 1) > 1)
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
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    receipt: Annotated[bool, _option("Show where the time went.", OUTPUT, "--receipt/--no-receipt")] = True,
) -> None:
    """Talk to a model: in a conversation, or with one message. /reset forgets, /quit or Ctrl-D ends."""
    from forebay.cli.chat import Conversation
    from forebay.client import Forebay

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = checked({name: value for name, value in sampling.items() if value is not None})
    with Forebay(gateway, timeout_s=timeout) as client:
        conversation = Conversation(client, model, system or "", given, show_receipt=receipt)
        if message is not None:
            conversation.ask(message)
        else:
            conversation.loop()


def models(gateway: Gateway = DEFAULT_GATEWAY) -> None:
    """List the served models."""
    from rich.console import Console
    from rich.table import Table

    from forebay.client import Forebay

    with Forebay(gateway) as client:
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
    from forebay.client import Forebay

    with Forebay(address) as client:
        state = client.health(service)
    typer.echo(state)
    raise typer.Exit(0 if state == "SERVING" else 1)


SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "n", "max_tokens", "min_tokens", "ignore_eos"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs"),
)


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the client's generate, from the command's options that were given."""
    sampling = {name: value for name, value in given.items() if name in SAMPLING_FIELDS}
    if "stop_token_ids" in given:
        sampling["stop_token_ids"] = _ids("--stop-token-ids", given["stop_token_ids"])
    if "logit_bias" in given:
        sampling["logit_bias"] = dict(map(_bias, given["logit_bias"]))
    tokens = given.get("token_ids")
    prompt = (
        _prompt(given.get("prompt"), given.get("file")) if tokens is None else _ids("--token-ids", tokens)
    )
    call = {"prompt": prompt, "model": given.get("model"), "stop": given.get("stop", ())}
    return call | checked(sampling)


def checked(sampling: dict[str, Any]) -> Sampling:
    """The same parameters; a value that its type cannot hold is wrong usage of its option."""
    from forebay.client.requests import to_sampling

    try:
        to_sampling(cast("Sampling", sampling))
    except InvalidArgument as error:
        field, _, message = error.message.partition(":")
        raise typer.BadParameter(f"--{field.replace('_', '-')}:{message}") from error
    return cast("Sampling", sampling)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None:
        return prompt
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


def collect(stream: Stream, *, is_quiet: bool) -> Completion:
    """Gather a stream; unless quiet, its text goes to standard output as it comes."""
    from forebay.client import Completion

    completion = Completion()
    with stream:
        for delta in stream:
            completion.add(delta)
            if not is_quiet and delta.text:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
    return completion
