"""`nemotron-export demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemotron_export.cli.console import print_json, show_progress, size_text

__all__ = ["demo"]


def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Keep the bundle here; a temporary folder by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, for PyTorch and the bundle alike.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build the embedded checkpoint for the CPU, prove it, generate text, and measure it next to eager PyTorch."""
    from nemotron_export.cli.bench import print_bench
    from nemotron_export.cli.check import print_report
    from nemotron_export.demo import run_demo

    with show_progress() as progress:
        result = run_demo(output, threads=threads, progress=progress)
    if json_output:
        print_json(result.to_dict())
        return
    typer.echo(
        f"{result.checkpoint}\n{size_text(result.bundle_bytes)} of bundle, built in {result.build_seconds:.1f} s"
    )
    for prompt, text in result.texts.items():
        typer.echo(f"\n[{prompt}]{text}")
    typer.echo()
    print_report(result.report)
    typer.echo()
    print_bench(result.benchmark)
    typer.echo("\nEvery check passed.")
