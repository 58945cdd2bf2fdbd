"""Commands for developers: stubs, model conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def protos(
    check: Annotated[bool, typer.Option("--check", help="Compare only; fail on any difference.")] = False,
) -> None:
    """Regenerate the gRPC stubs in forebay from protos/."""
    from forebay.cli import protos as stubs

    if check:
        stubs.check()
        typer.echo("the stubs match protos/")
    else:
        typer.echo(f"{len(stubs.regenerate())} files written to forebay")


def import_model(
    gguf: Annotated[Path, typer.Argument(help="A .gguf file.", exists=True, dir_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: the file's name without .gguf.")
    ] = None,
) -> None:
    """Convert a GGUF file to a folder of config.json, safetensors and tokenizer.json."""
    from forebay.cli.view import ByteBar
    from forebay.errors import AlreadyExists
    from forebay.model.gguf import import_gguf

    folder = out or gguf.with_suffix("")
    if folder.exists():
        raise AlreadyExists(f"{folder} exists already; name another folder with --out")
    with ByteBar(f"converting {gguf.name}") as bar:
        import_gguf(gguf, folder, bar)
    typer.echo(folder)
