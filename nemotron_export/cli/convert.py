"""`nemotron-export convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemotron_export.cli.console import show_progress

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, or a hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new checkpoint's folder; must not exist.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")],
    task: Annotated[str | None, typer.Option(help="By default what the config's architecture says.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
) -> None:
    """Write a checkpoint in another dtype, one block of a tensor at a time; `build` itself converts nothing on disk."""
    from nemotron_export.checkpoint.convert import convert as run_convert

    with show_progress() as progress:
        path = run_convert(checkpoint, output, dtype, task=task, revision=revision, progress=progress)
    typer.echo(f"{path}: {dtype}")
