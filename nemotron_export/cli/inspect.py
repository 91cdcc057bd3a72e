"""`nemotron-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nemotron_export.cli.console import print_json, print_table

__all__ = ["inspect"]


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint or a bundle.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a checkpoint or a bundle holds: config, tensors, ops, sizes, limits, parity."""
    from nemotron_export.inspect import inspect_path

    found = inspect_path(path)
    if json_output:
        print_json(found)
        return
    for index, (title, content) in enumerate(found.items()):
        if index:
            typer.echo()
        print_table(title, ("what", "value"), _rows(content))


def _rows(content: Any) -> list[tuple[str, str]]:
    if not isinstance(content, dict):
        return [("", _text(content))]
    return [(key, _text(value)) for key, value in content.items()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
