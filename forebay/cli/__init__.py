"""The `forebay` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    # Imported late: services import nothing of the command line but its launcher.
    from forebay.cli.app import run

    run()
