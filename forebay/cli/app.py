"""The command tree, and how errors leave the process: one line, exit code 1, or 2 for wrong usage."""

from __future__ import annotations

import sys

import typer

from forebay.cli import ask, bench, operate, serve, tools
from forebay.errors import ForebayError

EXAMPLES = """[b]Examples[/b]

forebay demo\n
forebay up --model ./my-model --speculate ngram\n
forebay generate "The capital of France is" --max-tokens 8\n
forebay generate --file prompt.txt --temperature 0 --json\n
forebay chat\n
forebay top\n
forebay bench --concurrency 16
"""
SERVE, USE, OPERATE, DEVELOP = "Serve", "Use a running gateway", "See and measure", "Develop"

app = typer.Typer(
    help="LLM inference as gRPC services: gateway, prefill, decode and draft tiers around a shared KV store.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel=SERVE, epilog=serve.UP_EXAMPLES)(serve.up)
app.command(rich_help_panel=SERVE)(serve.demo)
app.command(rich_help_panel=USE, epilog=ask.CHAT_EXAMPLES)(ask.chat)
app.command(rich_help_panel=USE, epilog=ask.GENERATE_EXAMPLES)(ask.generate)
app.command(rich_help_panel=USE)(ask.models)
app.command(rich_help_panel=USE)(ask.health)
app.command(rich_help_panel=OPERATE)(operate.top)
app.command(rich_help_panel=OPERATE)(operate.explain)
app.command(rich_help_panel=OPERATE)(operate.doctor)
app.command(rich_help_panel=OPERATE, epilog=bench.BENCH_EXAMPLES)(bench.bench)
app.command(rich_help_panel=DEVELOP)(tools.protos)
app.command(rich_help_panel=DEVELOP)(operate.metrics_doc)
model_app = typer.Typer(help="Convert models.", no_args_is_help=True)
model_app.command("import")(tools.import_model)
app.add_typer(model_app, name="model", rich_help_panel=DEVELOP)


def run() -> None:
    """Run the command line of this process."""
    # What a terminal or a pipe cannot show must not end an answer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except ForebayError as error:
        hint = f"; {error.hint}" if error.hint else ""
        sys.stderr.write(f"forebay: {error.message}{hint}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
