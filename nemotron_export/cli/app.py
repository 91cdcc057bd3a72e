"""The `nemotron-export` application: its commands, `--version`, and the exit codes in its help."""

from __future__ import annotations

from typing import Annotated

import typer

from nemotron_export.cli.bench import bench
from nemotron_export.cli.build import build
from nemotron_export.cli.chat import chat
from nemotron_export.cli.check import parity, verify
from nemotron_export.cli.convert import convert
from nemotron_export.cli.demo import demo
from nemotron_export.cli.doctor import doctor
from nemotron_export.cli.generate import generate
from nemotron_export.cli.guard import EXIT_CODES, INTERRUPTED, TERMINATED, guarded
from nemotron_export.cli.inspect import inspect
from nemotron_export.cli.interrupts import end_soon
from nemotron_export.cli.tasks import answer, classify, embed, tag

__all__ = ["app", "main"]

_EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="nemotron-export",
    help="Export Nemotron checkpoints to parity-checked bundles, and generate text from them.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_COMMANDS = (
    build, convert, generate, chat, classify, tag, answer, embed, parity, verify, inspect, bench, doctor, demo,
)  # fmt: skip
for _command in _COMMANDS:
    app.command(epilog=_EPILOG)(guarded(_command))


def _version(wanted: bool) -> None:
    if wanted:
        from nemotron_export import __version__

        typer.echo(f"nemotron-export {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script; an interrupted command's process ends, whatever its threads still wait for."""
    try:
        app()
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            end_soon(int(end.code))
        raise
